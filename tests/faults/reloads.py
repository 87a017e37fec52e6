"""SIGHUP in a loop, with good and bad configurations, while words are spoken."""

import signal
import sys
import time

from scene import Scene, options

GOOD = (
    "streams: [{source: microphone}]\n",
    "streams: [{source: microphone}]\ndebouncer: {refractory_ms: 600}\n",
    "streams: [{source: microphone}]\nevents: {rejected: true}\n",
    "model: commands\nstreams: [{source: microphone}]\n",
)
BAD = (
    "streams: [{source: mikrophone}]\n",
    "modell: commands\n",
    "model: nowhere.onnx\n",
    "{",
    "streams: [{source: microphone, channel: 7000}]\n",
    "streams: [{source: file, path: nowhere.wav}]\n",
    "sinks: {socket: {path: /proc/no/such.sock}}\n",
    "",  # the default: the same microphone
)

if __name__ == "__main__":
    given = options(__doc__, times=200)
    with Scene(seed=given.seed) as scene:
        config = scene.folder / "kwsd.yaml"
        config.write_text(GOOD[0])
        scene.daemon.stop()
        scene.runs.clear()
        scene.arguments = ("--config", str(config))
        scene.launch().wait_for("ready")
        refused = 0
        with scene.talking():
            for turn in range(given.times):
                config.write_text(scene.draw.choice(BAD if turn % 2 else GOOD))
                begun = time.time()
                scene.daemon.process.send_signal(signal.SIGHUP)
                answer = scene.daemon.wait_for("reload", timeout=10)
                refused += not answer["ok"]
                time.sleep(scene.draw.uniform(0.2, 2.0))
        code = scene.settle(reloads=given.times, refused=refused)
    sys.exit(code)
