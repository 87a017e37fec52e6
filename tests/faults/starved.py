"""Other processes take the processor, many more of them than it has cores."""

import os
import subprocess
import sys
import time

from scene import Scene, options

if __name__ == "__main__":
    given = options(__doc__, seconds=120, burners=8)
    with Scene(seed=given.seed) as scene:
        burners = [
            subprocess.Popen([sys.executable, "-c", "while True: pass"])
            for _ in range(given.burners * (os.cpu_count() or 1))
        ]
        try:
            scene.talk(given.seconds)
        finally:
            for burner in burners:
                burner.kill()
                burner.wait()
        time.sleep(3.0)
        scene.talk(10.0)
        code = scene.settle(burners=len(burners))
    sys.exit(code)
