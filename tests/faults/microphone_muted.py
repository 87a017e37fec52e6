"""The microphone is muted and unmuted by the sound server."""

import subprocess
import sys
import time

from scene import Scene, options

DEAD_AFTER_S = 6  # longer than between two words, on a machine that is busy
LOOK_S = 2  # what a look counts for, at most

if __name__ == "__main__":
    given = options(__doc__, times=20)
    with Scene("--set", f"capture.dead_after_s={DEAD_AFTER_S}", seed=given.seed) as scene:
        source = f"{scene.server.sink}.monitor"
        told = 0
        for _ in range(given.times):
            scene.talk(4.0)
            subprocess.run(["pactl", "set-source-mute", source, "1"], env=scene.environment, check=True)
            begun = time.time()
            fault = scene.daemon.wait_for("audio_fault")
            told += fault["fault"] == "digital silence" and fault["lasted_s"] <= DEAD_AFTER_S + LOOK_S
            time.sleep(scene.draw.uniform(0.0, 3.0))
            subprocess.run(["pactl", "set-source-mute", source, "0"], env=scene.environment, check=True)
            scene.say()
            scene.daemon.wait_for("audio_healed")
            scene.ledger.excused.append((begun - 0.5, time.time()))
            time.sleep(2.0)  # words said in a run are talk, and no commands
        faults = sum(event["type"] == "audio_fault" for event in scene.daemon.events)
        code = scene.settle(muted=given.times, told=told, told_more_than_once=faults - told)
    sys.exit(code or told != given.times or faults != told)
