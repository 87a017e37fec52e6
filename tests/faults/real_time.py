"""Two hours in real time, a word every few seconds."""

import sys

from scene import Scene, options

if __name__ == "__main__":
    given = options(__doc__, minutes=120.0)
    with Scene("--set", "events.heartbeat_s=60", seed=given.seed) as scene:
        scene.talk(given.minutes * 60, pause=(2.0, 6.0))
        code = scene.settle(minutes=given.minutes)
    sys.exit(code)
