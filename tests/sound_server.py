"""A real PortAudio device without a sound card: a PulseAudio null sink whose monitor is the microphone."""

import os
import shutil
import subprocess
import time
from pathlib import Path

WANTED = ("pulseaudio", "paplay", "pactl")
ASOUNDRC = "pcm.!default {{ type pulse device {sink}.monitor }}\nctl.!default {{ type pulse }}\n"


def missing() -> list[str]:
    """Programs that are not installed."""
    return [program for program in WANTED if shutil.which(program) is None]


class SoundServer:
    """A PulseAudio of our own in a folder of its own. Playing into its sink is somebody speaking."""

    def __init__(self, folder: Path, sink: str = "mouth", rate: int = 48_000) -> None:
        self.folder, self.sink, self.rate = folder, sink, rate
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("KWSD_")},
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder),
            "PULSE_SERVER": f"unix:{folder}/pulse.sock",
        }
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Up and playing when it returns."""
        (self.folder / ".asoundrc").write_text(ASOUNDRC.format(sink=self.sink))
        self._process = subprocess.Popen(
            [
                "pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no", "--log-target=stderr",
                f"--load=module-native-protocol-unix auth-anonymous=1 socket={self.folder}/pulse.sock",
                f"--load=module-null-sink sink_name={self.sink} rate={self.rate}",
            ],
            env=self.environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        for _ in range(100):
            answer = subprocess.run(["pactl", "info"], env=self.environment, capture_output=True, check=False)
            if answer.returncode == 0:
                return
            time.sleep(0.05)
        raise RuntimeError("pulseaudio did not come up")

    def kill(self) -> None:
        """Somebody unplugs the microphone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def signal(self, number: int) -> None:
        """Stop it, so that it hangs, or let it go on."""
        assert self._process is not None
        self._process.send_signal(number)

    def speak(self, recording: Path) -> None:
        """Play a recording into the microphone; returns when it is over."""
        subprocess.run(["paplay", f"--device={self.sink}", str(recording)], env=self.environment, check=True)
