"""The sound server is killed at random moments and started again, while somebody speaks."""

import sys
import time

from scene import Scene, options, when

if __name__ == "__main__":
    given = options(__doc__, times=50)
    killed = []
    with Scene(seed=given.seed) as scene:
        with scene.talking():
            for _ in range(given.times):
                time.sleep(scene.draw.uniform(1.0, 12.0))
                killed.append(time.time())
                scene.server.kill()
                time.sleep(scene.draw.uniform(0.0, 3.0))
                scene.server.start()
            scene.daemon.wait_for("audio_restored", timeout=30)
            time.sleep(10.0)
        lost = [when(event) for event in scene.daemon.events if event["type"] == "audio_lost"]
        noticed = [min((at - kill for at in lost if at >= kill), default=99.0) for kill in killed]
        # One killed while it was still being opened again was never back, and is told once.
        code = scene.settle(
            killed=given.times, lost=len(lost), noticed_after_s=round(sorted(noticed)[len(lost) // 2], 2)
        )
    sys.exit(code)
