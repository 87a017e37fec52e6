"""The device goes away and comes back with another rate, and with another number of channels."""

import subprocess
import sys
import time

from scene import Scene, options

RATES = (44_100, 16_000, 96_000, 8_000, 48_000)  # Hz

if __name__ == "__main__":
    given = options(__doc__, times=10)
    with Scene(seed=given.seed) as scene:

        def control(*command: str) -> str:
            done = subprocess.run(
                ["pactl", *command], env=scene.environment, check=True, capture_output=True, text=True
            )
            return done.stdout

        for turn in range(given.times):
            begun = time.time()
            control("unload-module", "module-null-sink")
            scene.daemon.wait_for("audio_lost", timeout=5)
            rate = RATES[turn % len(RATES)]
            control("load-module", "module-null-sink", f"sink_name={scene.server.sink}", f"rate={rate}",
                    f"channels={1 + turn % 2}")  # fmt: skip
            scene.daemon.wait_for("audio_restored", timeout=15)
            scene.ledger.excused.append((begun, time.time()))
            time.sleep(0.6)
            scene.talk(6.0)
        code = scene.settle(changed=given.times)
    sys.exit(code)
