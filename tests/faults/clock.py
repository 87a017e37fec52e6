"""The wall clock is set forwards and back while words are spoken (libfaketime; the monotonic clock goes on)."""

import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from scene import Scene, options

STEPS = ("+3600", "-3600", "+0", "+31536000", "-86400")  # seconds off
LATEST_MS = 60_000  # on a machine that is busy; a step is an hour at least
LIBRARIES = [*Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")]

if __name__ == "__main__":
    given = options(__doc__, times=20)
    if not LIBRARIES:
        sys.exit("libfaketime is not installed; on Debian: apt install libfaketime")
    with Scene(seed=given.seed) as scene:
        scene.daemon.stop()
        scene.runs.clear()
        offset = scene.folder / "offset"
        offset.write_text("+0")
        scene.environment = scene.environment | {
            "LD_PRELOAD": str(LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        scene.launch().wait_for("ready")
        years = set()
        with scene.talking():
            for turn in range(given.times):
                offset.write_text(STEPS[turn % len(STEPS)])
                time.sleep(scene.draw.uniform(4.0, 7.0))  # in which a word is said
        scene.daemon.stop()
        years = {event["time"][:4] for event in scene.daemon.events}
        latencies = [event["latency_ms"] for event in scene.daemon.detections]
        for event, arrival in zip(scene.daemon.events, scene.daemon.arrivals, strict=True):
            event["time"] = datetime.fromtimestamp(arrival, UTC).isoformat()
        code = scene.settle(steps=given.times, years=sorted(years), highest_latency_ms=max(latencies))
    sys.exit(code or max(latencies) > LATEST_MS or len(years) < 2)
