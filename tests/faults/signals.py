"""SIGTERM, SIGINT and SIGKILL at random moments, from the first on, and the daemon started again each time."""

import signal
import sys
import time
from collections import Counter

from scene import Scene, options
from test_bad_input import catches_sigterm

STOPPED_S = 5.0  # on a machine that is busy; who waits for something to end waits longer

if __name__ == "__main__":
    given = options(__doc__, times=60)
    wrong, ended = [], Counter()
    with Scene(seed=given.seed) as scene:
        with scene.talking():
            for turn in range(given.times):
                number = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)[turn % 3]
                time.sleep(scene.draw.choice((0.0, 0.05, 0.1, 0.2, 0.4, 1.0, 3.0, 6.0)))
                early = not catches_sigterm(scene.daemon.process)
                code, took = scene.daemon.stop(number)
                last = scene.daemon.events[-1]["type"] if scene.daemon.events else ""
                expected = {-9} if number == signal.SIGKILL else {0} if number == signal.SIGTERM else {0, 130}
                if early:  # Python itself ends, in its own way
                    expected |= {-number, 1}
                if code not in expected or took > STOPPED_S or (code == 0 and last not in {"shutdown", ""}):
                    wrong.append((number.name, code, took, last, scene.daemon.errors[-3:]))
                ended[f"{number.name} {code}"] += 1
                scene.ledger.excused.append((time.time() - 2.0, time.time()))
                if number == signal.SIGKILL:
                    scene.ledger.excused.append((time.time() - 2.0, time.time() + 5.0))
                scene.launch()
            scene.daemon.wait_for("ready")
            time.sleep(5.0)
        code = scene.settle(ended=ended, wrong=wrong)
    sys.exit(code or bool(wrong))
