"""The model file is replaced, overwritten, truncated and deleted under a running daemon, with a reload after each."""

import shutil
import signal
import sys
import time
from pathlib import Path

from scene import Scene, options

import kwsd

MODELS = Path(kwsd.__file__).parent / "models"

if __name__ == "__main__":
    given = options(__doc__, times=30)
    with Scene(seed=given.seed) as scene:
        scene.daemon.stop()
        scene.runs.clear()
        code, refused = 0, 0
        for suffix in (".onnx", ".pt"):
            model = scene.folder / f"model{suffix}"
            shutil.copy(MODELS / f"commands{suffix}", model)
            scene.arguments = ("--model", str(model), "--set", f"sinks.socket.path={scene.folder}/{suffix}.sock")
            scene.launch().wait_for("ready")
            with scene.talking():
                for turn in range(given.times):
                    damage = turn % 6
                    if damage == 0:
                        model.write_bytes(model.read_bytes()[: scene.draw.randrange(model.stat().st_size)])
                    elif damage == 1:
                        model.unlink()
                    elif damage == 2:
                        model.write_bytes(bytes(scene.draw.randrange(256) for _ in range(10_000)))
                    elif damage == 3:
                        shutil.copy(MODELS / f"commands-fast{suffix}", model.with_suffix(".new"))
                        model.with_suffix(".new").replace(model)
                    elif damage == 4:
                        shutil.copy(MODELS / f"commands{suffix}", model)  # into the same file
                    else:
                        whole = bytearray(model.read_bytes())
                        for _ in range(100):
                            whole[scene.draw.randrange(len(whole))] ^= 1 << scene.draw.randrange(8)
                        model.write_bytes(whole)
                    time.sleep(scene.draw.uniform(0.0, 2.0))
                    scene.daemon.process.send_signal(signal.SIGHUP)
                    answer = scene.daemon.wait_for("reload", timeout=20)
                    refused += not answer["ok"]
                    if damage in {3, 4} and not answer["ok"]:
                        print(answer, file=sys.stderr)
                        code = 1
                    if damage == 5 and answer["ok"]:
                        model.unlink()  # it happened to be as good; but words may be told apart no more
                        shutil.copy(MODELS / f"commands{suffix}", model)
                        scene.daemon.process.send_signal(signal.SIGHUP)
                        scene.daemon.wait_for("reload", timeout=20)
                    time.sleep(1.0)
            code |= scene.daemon.stop()[0]
        code |= scene.settle(damaged=2 * given.times, refused=refused)
    sys.exit(code)
