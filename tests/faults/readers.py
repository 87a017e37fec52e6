"""A reader of events that is frozen for minutes, others that vanish in the middle of a line, and 200 at once."""

import json
import socket
import sys
import threading
import time

from scene import Scene, options

BEAT_S = 0.02  # a heartbeat as often as this: many events


def connect(scene: Scene) -> socket.socket:
    """A reader."""
    reader = socket.socket(socket.AF_UNIX)
    reader.settimeout(30)
    reader.connect(str(scene.folder / "kwsd/events.sock"))
    return reader


def read_all(reader: socket.socket, into: list[dict]) -> None:
    """Until the daemon hangs up."""
    with reader, reader.makefile("rb") as lines:
        into.extend(json.loads(line) for line in lines)


def lost_by(events: list[dict]) -> tuple[int, int]:
    """How many events are not among those that a reader got, and how many it was told it lost."""
    numbers = [event["seq"] for event in events if "seq" in event]
    assert numbers == sorted(set(numbers)), "out of order, or twice"
    return numbers[-1] + 1 - numbers[0] - len(numbers), sum(e["count"] for e in events if e["type"] == "dropped")


if __name__ == "__main__":
    given = options(__doc__, minutes=10.0, readers=200)
    with Scene("--set", f"events.heartbeat_s={BEAT_S}", seed=given.seed) as scene:
        frozen, many, threads = connect(scene), [[] for _ in range(given.readers)], []
        for events in many:
            threads.append(threading.Thread(target=read_all, args=(connect(scene), events)))
            threads[-1].start()
        until = time.time() + given.minutes * 60
        while time.time() < until:
            scene.say()
            for _ in range(5):
                hasty = connect(scene)
                hasty.recv(10)  # of the first line
                hasty.close()
                time.sleep(0.2)
        thawed: list[dict] = []
        threads.append(threading.Thread(target=read_all, args=(frozen, thawed)))
        threads[-1].start()
        time.sleep(1.0)
        code = scene.settle(minutes=given.minutes, readers=given.readers)
        for thread in threads:
            thread.join()
    missing, told = lost_by(thawed)
    kept_up = [lost_by(events) for events in many]
    print(json.dumps({"frozen_reader_lost": missing, "and_was_told": told, "others_lost": sum(map(sum, kept_up))}))
    sys.exit(code or missing != told or (missing == 0 and given.minutes > 1) or any(map(sum, kept_up)))
