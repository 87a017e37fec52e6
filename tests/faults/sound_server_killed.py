"""The sound server is killed at random moments and started again, while somebody speaks.

PortAudio sometimes falls into an endless loop of its own when the server dies while a stream starts. The daemon then
ends with 74, and is started again here, as systemd does.
"""

import sys
import time

from scene import Scene, options, when

ENDED = 74


def start_anew(scene: Scene) -> int:
    """What systemd would do; how often."""
    if scene.daemon.process.poll() != ENDED:
        return 0
    scene.launch()
    return 1


if __name__ == "__main__":
    given = options(__doc__, times=50)
    killed, restarts = [], 0
    with Scene(seed=given.seed) as scene:
        with scene.talking():
            for _ in range(given.times):
                time.sleep(scene.draw.uniform(1.0, 12.0))
                killed.append(time.time())
                scene.server.kill()
                time.sleep(scene.draw.uniform(0.0, 3.0))
                scene.server.start()
                restarts += start_anew(scene)
            time.sleep(15.0)
            restarts += start_anew(scene)
            time.sleep(10.0)
        lost = [when(event) for run in scene.runs for event in run if event["type"] == "audio_lost"]
        # One killed while it was still being opened again was never back, and is told once.
        noticed = [min((at - kill for at in lost if at >= kill), default=99.0) for kill in killed]
        noticed_after_s = round(sorted(noticed)[len(noticed) // 2], 2)
        code = scene.settle(killed=given.times, lost=len(lost), noticed_after_s=noticed_after_s, restarts=restarts)
    sys.exit(code)
