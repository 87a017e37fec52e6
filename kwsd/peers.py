"""`kwsd bench --peers`: what others spend on the same audio, used as their own documentation says, in turns, each in a
process of its own.

    python -m kwsd.peers NAME PCM REALTIME

is such a process: it takes 16 kHz 16-bit mono from the file PCM, a tenth of a second at a time, and prints its figures.
kwsd's own reads its configuration from stdin.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from kwsd.audio_format import SAMPLE_RATE
from kwsd.config import Config, effective_yaml, load_config
from kwsd.errors import UNAVAILABLE, KwsdError
from kwsd.proc import rss_mib
from kwsd.ring import Samples

CHUNK = SAMPLE_RATE // 10  # samples
ROUNDS = 3
FAST_S, REALTIME_S = 60.0, 15.0  # of audio, as fast as it goes and in real time

Take = Callable[[bytes], None]  # of the next tenth of a second


def _kwsd() -> Take:
    """Everything between a source and the events."""
    from kwsd.engines import load_spotter
    from kwsd.inlet import Inlet
    from kwsd.pcm import PcmDecoder
    from kwsd.pipeline import Pipeline, StreamInfo, make_ring

    config = load_config(Path("/dev/stdin"))
    ring = make_ring(config, 1)
    inlet, decoder = Inlet(ring, 0, SAMPLE_RATE, 1, None), PcmDecoder("s16le", 1)
    spotter = load_spotter(config.model_path, "cpu", engine=config.engine)
    pipeline = Pipeline(config, spotter, ring, [inlet], [StreamInfo("bench", live=True, lead_in=True)])

    def take(chunk: bytes) -> None:
        inlet.write(decoder.frames(chunk))
        pipeline.advance()

    return take


def _pymicro_wakeword() -> Take:
    from pymicro_wakeword import MicroWakeWord, MicroWakeWordFeatures, Model

    features, word = MicroWakeWordFeatures(), MicroWakeWord.from_builtin(Model.OKAY_NABU)

    def take(chunk: bytes) -> None:
        for frame in features.process_streaming(chunk):
            word.process_streaming(frame)

    return take


def _pyopen_wakeword() -> Take:
    from pyopen_wakeword import Model, OpenWakeWord, OpenWakeWordFeatures

    features, word = OpenWakeWordFeatures.from_builtin(), OpenWakeWord.from_builtin(Model.OKAY_NABU)

    def take(chunk: bytes) -> None:
        for embeddings in features.process_streaming(chunk):
            for _ in word.process_streaming(embeddings):
                pass

    return take


def _openwakeword() -> Take:
    import openwakeword

    model = openwakeword.Model(wakeword_model_paths=[openwakeword.models["hey_mycroft"]["model_path"]])
    rest = np.zeros(0, np.int16)

    def take(chunk: bytes) -> None:
        nonlocal rest
        rest = np.concatenate([rest, np.frombuffer(chunk, np.int16)])
        while rest.size >= 1280:  # as much as it documents to be given
            model.predict(rest[:1280])
            rest = rest[1280:]

    return take


PEERS: dict[str, tuple[str, Callable[[], Take]]] = {  # module, and how to use it
    "kwsd": ("kwsd", _kwsd),
    "pymicro-wakeword": ("pymicro_wakeword", _pymicro_wakeword),
    "pyopen-wakeword": ("pyopen_wakeword", _pyopen_wakeword),
    "openwakeword": ("openwakeword", _openwakeword),
}
WORDS = {"kwsd": "ten words"}  # the others are given one


@dataclass(frozen=True)
class Spent:
    """One process's figures."""

    start_s: float  # from its start until the first tenth of a second is dealt with
    cpu_percent: float  # CPU time over audio time
    rss_mib: float


def measure_peers(config: Config, tape: Samples, say: Callable[[str], None]) -> dict[str, dict[str, list[Spent]]]:
    """Those that are installed, in turns: name → pace → figures of every round.

    Raises KwsdError if none but kwsd is there, or one cannot be run.
    """
    there = [name for name, (module, _) in PEERS.items() if importlib.util.find_spec(module)]
    if there == ["kwsd"]:
        raise KwsdError("bench --peers: none is installed; pip install 'kwsd[bench]'", exit_code=UNAVAILABLE)
    with tempfile.TemporaryDirectory() as folder:
        pcm = Path(folder) / "tape.s16"
        pcm.write_bytes((np.resize(tape, int(FAST_S * SAMPLE_RATE)) * 32767.0).astype("<i2").tobytes())
        rounds: dict[str, dict[str, list[Spent]]] = {name: {"fast": [], "realtime": []} for name in there}
        for turn in range(ROUNDS):
            for pace in ("fast", "realtime"):
                say(f"round {turn + 1} of {ROUNDS}, {pace}")
                for name in there:
                    rounds[name][pace].append(_run(name, pcm, pace, config))
    return rounds


def as_builtins(rounds: dict[str, dict[str, list[Spent]]]) -> Any:
    """For JSON."""
    return {name: {pace: [asdict(s) for s in spent] for pace, spent in paces.items()} for name, paces in rounds.items()}


def _run(name: str, pcm: Path, pace: str, config: Config) -> Spent:
    """One peer in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "kwsd.peers", name, str(pcm), pace, str(time.monotonic())],
        input=effective_yaml(msgspec.structs.replace(config, model=str(config.model_path.resolve()))),
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin"},
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise KwsdError(f"bench --peers: {name} failed: {last}", exit_code=UNAVAILABLE)
    return Spent(**json.loads(done.stdout.splitlines()[-1]))


def _be(name: str, pcm: Path, pace: str, started: float) -> Spent:
    """What the process does."""
    take = PEERS[name][1]()
    chunks = _chunks(pcm.read_bytes(), FAST_S if pace == "fast" else REALTIME_S)
    take(next(chunks))
    start_s = time.monotonic() - started
    begun, cpu, n = time.monotonic(), time.process_time(), 0
    for chunk in chunks:
        n += 1
        if pace == "realtime":
            time.sleep(max(0.0, begun + n * CHUNK / SAMPLE_RATE - time.monotonic()))
        take(chunk)
    cpu = time.process_time() - cpu
    return Spent(round(start_s, 2), round(100 * cpu / (n * CHUNK / SAMPLE_RATE), 3), round(rss_mib(os.getpid()), 1))


def _chunks(pcm: bytes, seconds: float) -> Iterator[bytes]:
    for start in range(0, min(len(pcm), int(seconds * SAMPLE_RATE) * 2), CHUNK * 2):
        yield pcm[start : start + CHUNK * 2]


def report(rounds: dict[str, dict[str, list[Spent]]]) -> str:
    """For people: the median of the rounds, and from the least to the most."""
    head = f"{'':20s}{'words':>10s}{'CPU, as fast as it goes':>28s}{'CPU in real time':>26s}{'RSS':>10s}{'start':>9s}"
    rows = [head]
    for name, paces in rounds.items():
        fast, realtime = (_spread([spent.cpu_percent for spent in paces[pace]]) for pace in ("fast", "realtime"))
        every = paces["fast"] + paces["realtime"]
        rss, start = (float(np.median([getattr(spent, field) for spent in every])) for field in ("rss_mib", "start_s"))
        rows.append(
            f"{name:20s}{WORDS.get(name, 'one word'):>10s}{fast:>28s}{realtime:>26s}{rss:>6.0f} MiB{start:>7.2f} s"
        )
    return "\n".join(rows)


def _spread(values: list[float]) -> str:
    return f"{np.median(values):.2f} % [{min(values):.2f}, {max(values):.2f}]"


if __name__ == "__main__":
    name, pcm, pace, started = sys.argv[1:]
    spent = _be(name, Path(pcm), pace, float(started))
    print(json.dumps(asdict(spent)))
