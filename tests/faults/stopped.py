"""The daemon itself is stopped and goes on, for longer and shorter than its rings reach back."""

import signal
import sys
import time

from scene import Scene, options

if __name__ == "__main__":
    given = options(__doc__, times=20)
    with Scene(seed=given.seed) as scene:
        with scene.talking():
            for _ in range(given.times):
                time.sleep(scene.draw.uniform(2.0, 6.0))
                scene.daemon.process.send_signal(signal.SIGSTOP)
                begun = time.time()
                time.sleep(scene.draw.choice((0.1, 0.5, 2.0, 6.0)))
                scene.daemon.process.send_signal(signal.SIGCONT)
                # A word is told when the daemon goes on; the sound server dropped what its own buffer could not hold.
                scene.ledger.excused.append((begun, time.time() + 1.0))
        code = scene.settle(stopped=given.times)
    sys.exit(code)
