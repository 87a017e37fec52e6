"""What tests of the command share: the real `kwsd` in a process of its own, and small models to run it with."""

import dataclasses
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import soundfile
from running import KWSD, PATIENCE_S, clean_environment
from sound_server import SoundServer

from kwsd.recording import DEMO

THREE_WORDS_S = 8.5
# Files that take minutes, most of them waiting: begun last they would be waited for alone.
LONGEST = (
    "live_systemd", "bad_input", "microphone", "listener", "faults", "pipe", "mqtt", "page", "training", "native",
)  # fmt: skip
COMMAND = [str(KWSD)] if KWSD.exists() else [sys.executable, "-m", "kwsd"]


def pytest_collection_modifyitems(items):
    """The longest files first; `make test` has each of its processes take the next file as it comes."""
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@dataclasses.dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict]:
        """stdout, which holds nothing but events."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def types(self) -> list[str]:
        return [event["type"] for event in self.events]

    @property
    def complaint(self) -> str:
        """The one line that says what is wrong. Log lines, which begin with the time, are none."""
        assert "Traceback" not in self.err and "internal error" not in self.err, self.err
        complaints = [line for line in self.err.splitlines() if not line[:4].isdigit()]
        assert len(complaints) == 1 and complaints[0].startswith("kwsd: "), self.err
        [complaint] = complaints
        assert self.err.count(complaint.removeprefix("kwsd: ")) == 1, f"said twice: {self.err}"
        return complaint

    def refused(self, code: int, *words: str) -> None:
        """It ended with this exit code and one line in which these words stand."""
        complaint = self.complaint
        assert [word for word in words if word not in complaint] == [], complaint
        assert self.code == code, complaint


@pytest.fixture
def server(tmp_path):
    """A PulseAudio in `tmp_path`, into which is spoken by `server.speak(path)`."""
    server = SoundServer(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def environment(tmp_path):
    """No KWSD_ setting, and places of its own for the socket and the cache."""
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    return clean_environment(XDG_RUNTIME_DIR=str(runtime), XDG_CACHE_HOME=str(tmp_path / "cache"))


@pytest.fixture
def kwsd(environment, tmp_path):
    """`kwsd("check", "--config", path)` runs the installed command in `tmp_path` and waits for its end."""

    def run(*arguments, data=b"", more=None, under=(), **options):
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": PATIENCE_S} | options
        if "stdin" not in options:
            options["input"] = data
        command = [*under, *COMMAND, *map(str, arguments)]
        result = subprocess.run(command, check=False, cwd=tmp_path, env=environment | (more or {}), **options)
        return Result(result.returncode, (result.stdout or b"").decode(), (result.stderr or b"").decode())

    return run


@pytest.fixture
def three_words(tmp_path):
    """The beginning of the demo recording."""
    speech, rate = soundfile.read(DEMO)
    path = tmp_path / "three_words.wav"
    soundfile.write(path, speech[: round(THREE_WORDS_S * rate)], rate)
    return path


@pytest.fixture
def certificates(tmp_path):
    """`ca.pem`, and `broker.pem` with `broker.key` that it vouches for."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")

    def openssl(*arguments):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, cwd=tmp_path)

    new = ("-newkey", "rsa:2048", "-nodes", "-days", "2")
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=an authority of our own")
    openssl("req", *new[:-2], "-keyout", "broker.key", "-out", "broker.csr", "-subj", "/CN=127.0.0.1")
    (tmp_path / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl(
        "x509", "-req", "-in", "broker.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
        "-extfile", "names", "-out", "broker.pem",
    )  # fmt: skip
    for key in tmp_path.glob("*.key"):
        key.chmod(0o644)  # mosquitto gives up root before it reads them
    tmp_path.chmod(0o755)
    return tmp_path


METADATA = {
    "format": 1, "architecture": "ears", "labels": ["yes", "no", "_silence_"], "sample_rate": 16000, "window": 16000,
    "features": None, "thresholds": {}, "figures": [], "data": "none", "licence": "MIT", "weights_sha256": "0" * 64,
}  # fmt: skip


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """A folder of artefacts. `good.pt` hears any loud sound as "yes"; each of the others has one thing wrong."""
    import torch
    from ears import Ears

    folder = tmp_path_factory.mktemp("models")

    def save(name, ears, **wrong):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is; the artefact is made of it
            metadata = json.dumps(METADATA | wrong)
            torch.jit.save(torch.jit.script(ears), str(folder / name), _extra_files={"kwsd.json": metadata})

    save("good.pt", Ears(3))
    save("rate.pt", Ears(3), sample_rate=8000)
    save("window.pt", Ears(3), window=8000)
    save("outputs.pt", Ears(5))
    save("threshold.pt", Ears(3), thresholds={"yes": 1.5})
    save("below.pt", Ears(3), thresholds={"yes": -0.5})
    save("wordless.pt", Ears(3), labels=["_a_", "_b_", "_silence_"])
    save("other_window.pt", Ears(3, window=7000))
    save("posteriors.pt", Ears(3, log=False))
    save("future.pt", Ears(3), format=2)
    save("figures.pt", Ears(3), labels=7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(Ears(3)), str(folder / "bare.pt"))
    torch.save(Ears(3).state_dict(), folder / "weights.pt")
    return folder
