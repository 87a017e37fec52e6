"""Wrong input, by the million, for whatever reads what others wrote: config, command line settings, the header of a
satellite, the events socket, the model file. Each must be taken, or refused in one line; nothing may crash, hang, grow.
"""

import json
import os
import resource
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from threading import Thread

from scene import Running, options

import kwsd
from kwsd.address import parse_address
from kwsd.artefact import read_artefact
from kwsd.config import load_config
from kwsd.errors import KwsdError
from kwsd.listener import Joined, Listener
from kwsd.ring import RingBuffer

MODELS = Path(kwsd.__file__).parent / "models"
ONE_INPUT_S = 10.0  # longer is a hang
ALLOWED_KIB = 20_000
WORDS = [
    "model", "device", "keywords", "streams", "source", "microphone", "file", "pcm", "name", "path", "channel", "rate",
    "listen", "on", "token_file", "window", "hop_ms", "debouncer", "threshold", "release", "sinks", "socket", "enabled",
    "queue", "events", "heartbeat_s", "capture", "dead_after_s", "all", "mix", "auto", "cuda", "null", "true", "~", "-",
    "1e999", "-1", "0", "0.5", "99999999999999999999", ".nan", ".inf", "!!python/object/apply:os.system", "&a", "*a",
    "<<:", "{", "}", "[", "]", ":", ",", "'", '"', "|", ">", "#", "%", "@", "`", "\t", "\n", "\n  ", "\n- ", "\n  - ",
    "\x00", "\ud800", "\U0001f3a4", "\x85", "\u2028", "tcp://127.0.0.1:7355", "unix:", "s16le", "stop", "---", "...",
    "2026-11-24",
]  # fmt: skip
CONFIGS = [
    "streams:\n  - source: microphone\n    device: '*USB*'\n",
    "keywords:\n  stop: {threshold: 0.7}\n  go: {}\n",
    "listen: {on: ['tcp://127.0.0.1:7355'], streams: 4}\nstreams: []\n",
    "debouncer: {smoothing_ms: 300, release: 0.4}\nwindow:\n  hop_ms: 100\n",
    "sinks:\n  socket:\n    path: auto\n    queue: 256\n",
]
HEADERS = [
    b'{"name": "kitchen"}',
    b'{"name": "k", "rate": 48000, "channels": 2, "channel": 1, "format": "s16le", "token": "x"}',
    b'{"name": "k", "channel": "mix", "format": "f32le"}',
]

COMMANDS = (
    b'{"command": "mute", "streams": ["stdin"]}',
    b'{"command": "unmute", "id": "a"}',
    b'{"command": "threshold", "keyword": "stop", "value": 0.7}',
    b'{"command": "status", "id": 3}',
    b'{"command": "subscribe", "types": ["detection"], "keywords": ["stop"], "scores": true}',
)


def mangle(text: bytes, draw: Random, words: list[bytes]) -> bytes:
    """A few changes: bits, bytes, pieces left out, repeated, moved, words put in."""
    out = bytearray(text)
    for _ in range(draw.choice((1, 1, 2, 3, 8))):
        at = draw.randrange(len(out) + 1)
        to = min(len(out), at + draw.choice((1, 2, 4, 16, 200)))
        match draw.randrange(6):
            case 0 if at < len(out):
                out[at] ^= 1 << draw.randrange(8)
            case 1:
                out[at:at] = draw.randbytes(draw.choice((1, 2, 8)))
            case 2:
                del out[at:to]
            case 3:
                out[at:at] = out[at:to] * draw.choice((1, 2, 50))
            case 4:
                del out[at:]
            case _:
                out[at:at] = draw.choice(words)
    return bytes(out)


def taken(what: Callable[[], object]) -> bool:
    """Whether it was; if not, it was refused in one line with a remedy or a reason."""
    try:
        what()
    except KwsdError as error:
        line = str(error)
        assert line and "\n" not in line and error.exit_code, repr(line)
        return False
    return True


def configs(draw: Random, place: Path) -> Callable[[], bool]:
    """Files, and settings over them."""
    path, words = place / "kwsd.yaml", [word.encode("utf-8", "surrogatepass") for word in WORDS]

    def one() -> bool:
        path.write_bytes(mangle(draw.choice(CONFIGS).encode(), draw, words))
        key, value = draw.choice(WORDS), draw.choice(WORDS)
        settings = (f"{key}.{draw.choice(WORDS)}={value}",) if draw.random() < 0.2 else ()
        return taken(lambda: load_config(path, settings, {}))

    return one


def addresses(draw: Random, place: Path) -> Callable[[], bool]:
    """Where satellites connect."""
    known = [b"tcp://127.0.0.1:7355", b"tcp://[::1]:1", b"unix:/run/x", b"tcp://0.0.0.0:99999"]

    def one() -> bool:
        text = mangle(draw.choice(known), draw, known).decode("utf-8", "replace")
        return taken(lambda: parse_address(text, lambda name: place / name))

    return one


KINDS = (".pt", ".pt", ".pt", ".onnx")  # ONNX has a checksum, which leaves little to try


def models(draw: Random, place: Path) -> Callable[[], bool]:
    """The shipped files, mangled; read as the daemon does before it runs anything of them."""
    seeds = [(MODELS / f"{name}{kind}").read_bytes() for name in ("commands", "commands-fast") for kind in KINDS]
    path, words = (
        place / "model",
        [b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"kwsd.json", b"kwsd.second", b"\xff" * 8, bytes(8)],
    )

    def one() -> bool:
        seed = draw.choice(seeds)
        if draw.random() < 0.5:  # the directory of a zip archive, and the metadata of ONNX, are at the end
            cut = max(0, len(seed) - 6_000)
            path.write_bytes(seed[:cut] + mangle(seed[cut:], draw, words))
        else:
            path.write_bytes(mangle(seed, draw, words))
        return taken(lambda: read_artefact(path))

    return one


def headers(draw: Random, place: Path) -> Callable[[], bool]:
    """Through a real socket, to a real listener."""
    ring = RingBuffer(8, 32_000, hop=1600)
    address = parse_address(f"unix:{place}/audio.sock", Path)
    listener = Listener([address], ring, 0, silent_s=1.0, at_once=16_000, wake=lambda: None)
    listener.start(lambda name: b'{"type":"hello"}\n')
    words = [word.encode("utf-8", "surrogatepass") for word in WORDS] + [
        b"\\u0000",
        b"\n",
        b'"',
        b"}" * 100,
        b"{" * 5000,
    ]

    def score() -> None:
        """What the inference thread does once all is scored: then the satellite is let go."""
        while listener.failure is None:
            time.sleep(0.0005)
            while listener.news:
                news = listener.news.popleft()
                if isinstance(news, Joined):
                    names[news.slot] = news.name
                else:
                    listener.release(news.slot, names[news.slot])

    names: dict[int, str] = {}
    Thread(target=score, daemon=True).start()

    def one() -> bool:
        with socket.socket(socket.AF_UNIX) as satellite:
            satellite.settimeout(ONE_INPUT_S)
            satellite.connect(f"{place}/audio.sock")
            satellite.sendall(
                mangle(draw.choice(HEADERS), draw, words) + b"\n" + draw.randbytes(draw.choice((0, 1, 999)))
            )
            satellite.shutdown(socket.SHUT_WR)
            answer = b""
            try:
                while piece := satellite.recv(4096):
                    answer += piece
            except ConnectionResetError:
                pass
        assert listener.failure is None, listener.failure
        kinds = [json.loads(line)["type"] for line in answer.splitlines() if line]
        assert kinds in ([], ["hello"], ["refused"], ["hello", "refused"]), kinds  # the last: what followed was none
        return kinds[:1] == ["hello"]

    return one


def readers(draw: Random, place: Path) -> Callable[[], bool]:
    """What readers of the events say, commands and what is nearly one, to a real daemon."""
    where = f"{place}/events.sock"
    daemon = Running("--source", "-", "--set", f"sinks.socket.path={where}")
    while not Path(where).exists():
        time.sleep(0.01)

    def one() -> bool:
        with socket.socket(socket.AF_UNIX) as reader:
            reader.settimeout(ONE_INPUT_S)
            reader.connect(where)
            try:
                reader.sendall(mangle(draw.choice(COMMANDS), draw, (*COMMANDS, *HEADERS)) + b"\n")
            except (BrokenPipeError, ConnectionResetError):
                return False
            if draw.random() < 0.5:
                assert json.loads(reader.recv(4096).splitlines()[0])["type"] == "hello"
        assert daemon.process.poll() is None, daemon.errors[-5:]
        return True

    return one


TARGETS = {headers: 0.45, configs: 0.25, addresses: 0.1, models: 0.15, readers: 0.05}  # shares of the inputs


def memory_kib() -> int:
    """What this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


def hung(*_: object) -> None:
    """One input took too long."""
    raise AssertionError(f"an input took more than {ONE_INPUT_S:g} s")


if __name__ == "__main__":
    given = options(__doc__, inputs=1_000_000)
    signal.signal(signal.SIGALRM, hung)
    found, wrong, begun = {}, Counter(), time.monotonic()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        for target, share in TARGETS.items():
            draw, count = Random(given.seed), int(given.inputs * share)
            one = target(draw, Path(folder))
            early, accepted, slowest = 0, 0, 0.0
            for turn in range(count):
                if turn == count // 4:
                    early = memory_kib()
                signal.setitimer(signal.ITIMER_REAL, ONE_INPUT_S)
                since = time.monotonic()
                try:
                    accepted += one()
                except Exception as error:  # the very thing that is looked for
                    wrong[f"{target.__name__}: {type(error).__name__}: {error}"[:300]] += 1
                slowest = max(slowest, time.monotonic() - since)
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            late = memory_kib()
            found[target.__name__] = {
                "inputs": count, "taken": accepted, "slowest_s": round(slowest, 2), "rss_kib": [early, late]
            }  # fmt: skip
            if late > early + ALLOWED_KIB:
                wrong[f"{target.__name__} grew"] += 1
    print(
        json.dumps({"inputs": given.inputs, "took_s": round(time.monotonic() - begun), **found, "wrong": wrong}),
        flush=True,
    )
    os._exit(bool(wrong))
