"""The disk is full where the log goes."""

import sys
from pathlib import Path

from scene import Scene, options

if __name__ == "__main__":
    given = options(__doc__, seconds=60)
    with Path("/dev/full").open("wb") as full, Scene("-v", seed=given.seed, log=full) as scene:
        for _ in range(max(1, given.seconds // 20)):
            scene.server.kill()  # something to be logged
            scene.daemon.wait_for("audio_lost")
            scene.server.start()
            scene.daemon.wait_for("audio_restored", timeout=20)
            scene.talk(8.0)
        code = scene.settle(seconds=given.seconds)
    sys.exit(code)
