"""What the fault scripts share: a sound server of their own, a daemon that listens to it, somebody who speaks, and a
ledger in which every word that was said must be found again: heard, or its loss announced.

Each script is run by hand, `python tests/faults/NAME.py [--times N]`, prints what it found in one line and ends with 1
if anything was lost without a word. `tests/test_faults.py` runs the short form of each.
"""

import argparse
import csv
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).parent.parent))

from running import Running
from sound_server import SoundServer

from kwsd.recording import DEMO

CLEAR = ("stop", "yes", "up", "go", "on")  # words of the demo that are heard at every time of asking
LATE_S = 1.5  # an event comes so long after the word
LATEST_S = 5.0  # the same, and a loss is told so long after it happened, on a machine that is busy
FILL_S = 0.6  # after audio came back, until the first windows are full
PAD_S = 0.25


def when(event: dict) -> float:
    """Seconds since the epoch."""
    return datetime.fromisoformat(event["time"]).timestamp()


def clips(folder: Path) -> dict[str, Path]:
    """A recording for each clear word, cut out of the demo."""
    speech, rate = soundfile.read(DEMO)
    with DEMO.with_suffix(".tsv").open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            start, end = (round(float(row[key]) * rate) for key in ("start_s", "end_s"))
            pad = round(PAD_S * rate)
            soundfile.write(folder / f"{row['keyword']}.wav", speech[start - pad : end + pad], rate)
    return {word: folder / f"{word}.wav" for word in CLEAR}


@dataclass
class Ledger:
    """What was said, and what came of it."""

    said: list[tuple[float, float, str]] = field(default_factory=list)  # from, to (s since the epoch), word
    excused: list[tuple[float, float]] = field(default_factory=list)  # times in which nobody claimed to listen

    def settle(self, runs: list[list[dict]]) -> dict:
        """Match the events of one or more runs of the daemon with what was said."""
        events = [event for run in runs for event in run]
        announced = self.excused + [gap for run in runs for gap in _announced(run)]
        heard = [(when(event), event["keyword"]) for event in events if event["type"] == "detection"]
        found, excused, missed = 0, 0, []
        for start, end, word in self.said:
            until = max([end, *(to for since, to in self.excused if start < to and since < end)]) + LATEST_S
            match = next((h for h in heard if h[1] == word and start <= h[0] <= until), None)
            if match:
                heard.remove(match)
                found += 1
            elif any(start < to and since < end for since, to in announced):
                excused += 1
            else:
                missed.append((round(start, 2), word))
        ids = Counter(event["id"] for event in events if "id" in event)
        return {
            "said": len(self.said),
            "heard": found,
            "loss_announced": excused,
            "missed": missed,
            "heard_but_not_said": [word for _, word in heard],
            "events_twice": sum(n > 1 for n in ids.values()),
            "events_lost": sum(_holes(run) for run in runs),
        }


def _announced(events: list[dict]) -> list[tuple[float, float]]:
    """Stretches of time that a run of the daemon itself says it did not hear."""
    told, lost_at = [], None
    ready = next((when(e) for e in events if e["type"] == "ready"), float("inf"))
    told.append((0.0, ready + FILL_S))
    for event in events:
        if event["type"] == "audio_lost":
            lost_at = lost_at or when(event) - LATEST_S
        elif event["type"] == "audio_restored":
            told.append((lost_at or 0.0, when(event) + FILL_S))
            lost_at = None
        elif event["type"] == "overrun":
            told.append((when(event) - 3 * LATE_S, when(event) + FILL_S))
        elif event["type"] == "overload":
            told.append((when(event) - 2 * LATE_S, when(event) + LATE_S))
        elif event["type"] == "shutdown":
            told.append((when(event) - LATE_S, float("inf")))
    if lost_at:
        told.append((lost_at, float("inf")))
    return told


def _holes(events: list[dict]) -> int:
    """Numbers missing in the sequence."""
    numbers = [event["seq"] for event in events if "seq" in event]
    return sum(later != sooner + 1 for sooner, later in itertools.pairwise(numbers)) + bool(numbers and numbers[0])


def _entries(place: Path) -> tuple[int, int]:
    return len(list((place / "task").iterdir())), len(list((place / "fd").iterdir()))


class Usage:
    """Memory, threads and descriptors of processes, looked at now and then; what counts is the one seen longest."""

    def __init__(self) -> None:
        self._seen: dict[int, list[tuple[float, int, int, int]]] = {}  # by process

    def look(self, pid: int) -> None:
        """Note how much it has."""
        place = Path(f"/proc/{pid}")
        try:
            rss = int((place / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
            self._seen.setdefault(pid, []).append((time.time(), rss, *_entries(place)))
        except OSError:
            return

    @property
    def settled(self) -> bool:
        """Whether it was looked at for so long that it should not grow any more."""
        seen = max(self._seen.values(), key=len)
        return seen[-1][0] - seen[0][0] > SETTLED_S

    def growth(self) -> dict:
        """From the most in the second quarter of the looks to the most in the last."""
        seen = max(self._seen.values(), key=len, default=[])
        if len(seen) < 8:
            return {}
        quarter = len(seen) // 4
        early, late = (np.max(part, 0) for part in (seen[quarter : 2 * quarter], seen[-quarter:]))
        return {
            "rss_kib": [int(early[1]), int(late[1])],
            "threads": [int(early[2]), int(late[2])],
            "descriptors": [int(early[3]), int(late[3])],
        }


class Scene:
    """`with Scene(options, "--set", …) as scene:`; the daemon is READY inside."""

    def __init__(self, *arguments: str, seed: int = 1, **running: object) -> None:
        """`running` is what `Running` takes besides."""
        self._place = tempfile.TemporaryDirectory(prefix="kwsd-")
        self.folder = Path(self._place.name)
        self.server = SoundServer(self.folder)
        self.server.start()
        self.environment = self.server.environment
        self._running = running
        self.draw, self.ledger, self.usage = random.Random(seed), Ledger(), Usage()
        self.arguments, self.runs = arguments, []
        self._clips = clips(self.folder)
        self.daemon = self.launch()

    def __enter__(self) -> "Scene":
        self.daemon.wait_for("ready")
        return self

    def __exit__(self, *_: object) -> None:
        self.daemon.__exit__()
        self.server.kill()
        self._place.cleanup()

    def launch(self) -> Running:
        """Another daemon, whose events are kept."""
        self.daemon = Running(*self.arguments, **{"environment": self.environment} | self._running)
        self.runs.append(self.daemon.events)
        return self.daemon

    def say(self, word: str | None = None) -> None:
        """Say a word, by chance if none is given."""
        word = word or self.draw.choice(CLEAR)
        start = time.time()
        done = subprocess.run(
            ["paplay", f"--device={self.server.sink}", str(self._clips[word])],
            env=self.environment, capture_output=True, check=False,
        )  # fmt: skip
        self.ledger.said.append((start, time.time(), word))
        if done.returncode != 0:  # the sound server died over it: it may have been said, or not
            self.ledger.excused.append((start, time.time()))
        self.usage.look(self.daemon.process.pid)

    def talk(self, seconds: float, pause: tuple[float, float] = (1.0, 2.0)) -> None:
        """Say words for a while."""
        until = time.time() + seconds
        while time.time() < until:
            self.say()
            time.sleep(self.draw.uniform(*pause))

    def talking(self) -> "Talking":
        """Words go on being said while the `with` lasts."""
        return Talking(self)

    def settle(self, **more: object) -> int:
        """Stop the daemon and print what was found; the exit code."""
        time.sleep(LATE_S)
        until = time.monotonic() + LATEST_S
        while self.ledger.settle(self.runs)["missed"] and time.monotonic() < until:
            time.sleep(0.1)
        code = self.daemon.stop()[0] if self.daemon.process.poll() is None else self.daemon.process.returncode
        found = self.ledger.settle(self.runs) | more
        events = Counter(event["type"] for run in self.runs for event in run)
        growth = self.usage.growth()
        leaks = ("threads", "descriptors") + (("rss_kib",) if growth and self.usage.settled else ())
        grew = growth and any(_more(growth, what) for what in leaks)
        bad = found["missed"] or found["events_twice"] or found["events_lost"] or code or grew
        bad = bad or len(found["heard_but_not_said"]) > found["said"] // 100
        bad = bad or any("Traceback" in line for line in self.daemon.errors)
        print(json.dumps(found | {"events": dict(events)} | growth), flush=True)
        if bad:
            print("".join(self.daemon.errors[-50:]), file=sys.stderr)
        return 1 if bad else 0


ALLOWED_KIB = 3_000
SETTLED_S = 90.0  # a process younger than this still comes to its size: its first gap, its first large batch


def _more(growth: dict, what: str) -> bool:
    return growth[what][1] > growth[what][0] + (ALLOWED_KIB if what == "rss_kib" else 1)


class Talking:
    """Somebody who talks on while something else happens."""

    def __init__(self, scene: Scene) -> None:
        self._scene, self._stop = scene, threading.Event()
        self._thread = threading.Thread(target=self._talk)

    def __enter__(self) -> "Talking":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _talk(self) -> None:
        while not self._stop.is_set():
            self._scene.say()
            self._stop.wait(self._scene.draw.uniform(1.0, 2.0))


def options(about: str | None, **defaults: float) -> argparse.Namespace:
    """`--times 50` for `times=50`, and a seed."""
    parser = argparse.ArgumentParser(description=about)
    for name, default in {**defaults, "seed": 1}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, metavar="N", help=f"default {default}")
    return parser.parse_args()
