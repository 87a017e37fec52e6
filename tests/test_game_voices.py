"""models/game_voices.py takes clips and what is said in them out of games, and leaves out what nobody wrote down."""

import importlib.util
import io
import struct
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import soundfile

SCRIPT = Path(__file__).parents[1] / "models/game_voices.py"


@pytest.fixture
def voices(monkeypatch):
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("game_voices", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sound(seconds, rate=11_025, kind="WAV"):
    file = io.BytesIO()
    soundfile.write(file, np.full(int(seconds * rate), 0.25), rate, format=kind)
    return file.getvalue()


def run(voices, monkeypatch, game, out):
    monkeypatch.setattr("sys.argv", ["game_voices.py", game, str(out)])
    voices.main()


def transcripts(out):
    return dict(line.split("\t") for line in (out / "transcripts.tsv").read_text().splitlines())


# --- Flight of the Amazon Queen ---


def sentences(said, at):
    """As the game has them: what comes behind one begins at a multiple of four, but behind an empty one at once."""
    data = bytes(at)
    for number, text in said.items():
        data += struct.pack(">xxHB", number, len(text)) + text.encode("latin-1")
        data += bytes(-len(data) % 4 if text else 0)
    return data[at:]


def conversation(key, mine, theirs):
    """One level of a tree that nobody looks at, then what both say."""
    of_mine = sentences(mine, 32 + 96)
    start = 32 + 96 + len(of_mine)
    head = struct.pack(">5h", -1, 0, key, len(mine), len(theirs)) + bytes(12) + struct.pack(">3H", start, 0, 0)
    return bytes(20) + head.ljust(32 + 96, b"\0") + of_mine + sentences(theirs, start)


def archive(**files):
    start, index, data = 15 + 21 * len(files), b"", b""
    for name, content in files.items():
        index += struct.pack(">12sBII", name.replace("_", ".").encode(), 1, start + len(data), len(content))
        data += content
    return b"QTBL".ljust(13, b"\0") + struct.pack(">H", len(files)) + index + data


@pytest.fixture
def queen(voices, tmp_path, monkeypatch):
    file = tmp_path / "queen.1c"
    monkeypatch.setitem(voices.GAMES, "queen", ("a-package", [file], voices.queen, True))
    monkeypatch.setattr(voices, "QUEEN", file)
    return file


def test_the_clips_of_a_conversation_have_the_parts_of_its_sentences(voices, queen, tmp_path, monkeypatch):
    talk = conversation(7, {0x1F: "Stop*24or I  go!"}, {2: "Never*XY00(237,112) ever*WT", 300: "Yes"})
    clips = {
        f"{name}_SB": sound(1.0) for name in ("07001FJ1", "07001FJ2", "070002P1", "070002P2", "07012CP1", "JOE00011")
    }
    queen.write_bytes(archive(BOB_DOG=talk, **clips))
    run(voices, monkeypatch, "queen", tmp_path / "out")
    assert transcripts(tmp_path / "out") == {
        "07J/07001FJ1.wav": "Stop",
        "07J/07001FJ2.wav": "or I go!",
        "07P/070002P1.wav": "Never",
        "07P/070002P2.wav": "ever",
        "07P/07012CP1.wav": "Yes",
    }
    written = soundfile.info(tmp_path / "out/07P/07012CP1.wav")
    assert (written.samplerate, written.channels, written.frames) == (16_000, 1, 16_000)


def test_above_what_was_recorded_comes_its_mirror_image_fainter(voices):
    rate, hz = 11_025, 4_000
    tone = np.sin(2 * np.pi * hz / rate * np.arange(rate)).astype(np.float32)
    wide = voices.mirrored(tone)
    spectrum = np.abs(np.fft.rfft(wide[1000:-1000] * np.hanning(len(wide) - 2000)))
    hertz = np.fft.rfftfreq(len(wide) - 2000, 1 / (2 * rate))
    low, high = (spectrum[np.abs(hertz - at) < 20].max() for at in (hz, rate - hz))
    assert 20 * np.log10(high / low) == pytest.approx(-12, abs=0.2)
    assert spectrum[(np.abs(hertz - hz) > 50) & (np.abs(hertz - (rate - hz)) > 50)].max() < low / 100


def test_a_sentence_without_words_does_not_put_the_next_out_of_step(voices, queen, tmp_path, monkeypatch):
    talk = conversation(7, {1: "", 2: "Hello"}, {})
    queen.write_bytes(archive(BOB_DOG=talk, **{"070001J1_SB": sound(0.5), "070002J1_SB": sound(0.5)}))
    run(voices, monkeypatch, "queen", tmp_path / "out")
    assert transcripts(tmp_path / "out") == {"07J/070002J1.wav": "Hello"}


# --- The Ur-Quan Masters ---


def test_every_other_role_is_to_test_on_and_what_nobody_wrote_down_is_left_out(voices, tmp_path, monkeypatch):
    addon, content = tmp_path / "voice.uqm", tmp_path / "content.uqm"
    with ZipFile(addon, "w") as file:
        for clip in ("orz/orz-001", "orz/orz-002", "vux/vux-001", "vux/unsaid-001"):
            file.writestr(f"3dovoice/{clip}.ogg", sound(0.5, kind="OGG"))
        file.writestr("3dovoice/vux/vux.txt", "#(HELLO)\tvux-001.ogg\nHideous human!\nGo.\n\n#(answer)\nNo.\n")
    with ZipFile(content, "w") as file:
        file.writestr("base/comm/orz/orz.txt", "#(ONE) \tORZ-001.ogg\nHello  *extremely*.\n#(TWO)\torz-002.ogg\nYes.\n")
    monkeypatch.setattr(voices, "VOICES", addon)
    monkeypatch.setattr(voices, "TEXTS", content)
    monkeypatch.setitem(voices.GAMES, "masters", ("a-package", [addon, content], voices.masters, False))
    run(voices, monkeypatch, "masters", tmp_path / "out")
    assert transcripts(tmp_path / "out") == {
        "validation/orz-001.wav": "Hello *extremely*.",
        "validation/orz-002.wav": "Yes.",
        "test/vux-001.wav": "Hideous human! Go.",
    }
    assert soundfile.info(tmp_path / "out/test/vux-001.wav").samplerate == 16_000


# --- what is missing ---


def test_what_is_not_there_is_named_and_where_it_comes_from(voices, queen, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"queen\.1c: not there; apt-get install a-package"):
        run(voices, monkeypatch, "queen", tmp_path / "out")


@pytest.mark.parametrize("arguments", [[], ["queen"], ["chess", "out"], ["queen", "out", "more"]])
def test_usage(voices, monkeypatch, arguments):
    monkeypatch.setattr("sys.argv", ["game_voices.py", *arguments])
    with pytest.raises(SystemExit, match="usage: game_voices"):
        voices.main()
