"""A day of audio through a pipe, as fast as it goes: the same words in every round, and nothing that grows."""

import json
import sys
import time

import numpy as np
from scene import ALLOWED_KIB, Running, Usage, options

from kwsd.recording import DEMO, read_recording

if __name__ == "__main__":
    given = options(__doc__, hours=24.0)
    speech = read_recording(DEMO)
    tape = np.concatenate([speech, np.zeros(-len(speech) % 16_000, np.float32)])
    sound = (tape * 32767).astype("<i2").tobytes()
    rounds, usage, begun = round(given.hours * 3600 * 16_000 / len(tape)), Usage(), time.monotonic()
    with Running("--source", "-", "--set", "sinks.socket.enabled=false") as daemon:
        for turn in range(rounds):
            daemon.process.stdin.write(sound)
            if turn % max(1, rounds // 200) == 0:
                usage.look(daemon.process.pid)
        daemon.process.stdin.close()
        code = daemon.finish(timeout=120)
    heard = [0] * rounds
    for word in daemon.detections:
        heard[int(word["start_s"] * 16_000) // len(tape)] += 1
    growth = usage.growth()
    found = {
        "hours": given.hours,
        "took_s": round(time.monotonic() - begun),
        "words": len(daemon.detections),
        "in_every_round": sorted(set(heard[1:])),
        "other_events": [e["type"] for e in daemon.events if e["type"] not in {"ready", "detection", "shutdown"}],
    }
    print(json.dumps(found | growth))
    grew = growth and growth["rss_kib"][1] > growth["rss_kib"][0] + ALLOWED_KIB
    sys.exit(code or grew or len(set(heard[1:])) != 1 or bool(found["other_events"]))
