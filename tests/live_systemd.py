"""A machine of its own, run by a real systemd: namespaces, and an overlay of this machine's files that is thrown away.

The service runs from the unit in `systemd/`, put where `systemd/README.md` says. Needs root.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
MEANS = ("unshare", "nsenter", "pivot_root", "/lib/systemd/systemd", "pulseaudio", "paplay", "pactl")
SOUND = "/run/sound/pulse.sock"

# What the machine finds in /opt is what runs these tests, wherever that lies: the unit hides /root and /home.
BOOT = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$PLACE"
cd "$PLACE"
mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
mkdir -p root/opt/python root/opt/venv root/opt/repository
mount --bind "$PYTHON" root/opt/python
mount --bind "$VENV" root/opt/venv
mount --bind "$REPOSITORY" root/opt/repository
cd root
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
pivot_root . mnt
umount -l mnt
rm -rf /etc/systemd/system/* /var/log/journal

/opt/python/bin/python3 -m venv --without-pip /opt/kwsd
packages=$(echo /opt/kwsd/lib/python3.*/site-packages)
printf '%s\\n' /opt/repository /opt/venv/lib/python3.*/site-packages > "$packages/tests.pth"
printf '#!/opt/kwsd/bin/python\\nfrom kwsd.cli import main\\nmain()\\n' > /opt/kwsd/bin/kwsd
chmod 755 /opt/kwsd/bin/kwsd

cd /opt/repository
mkdir -p /usr/local/bin
ln -sf /opt/kwsd/bin/kwsd /usr/local/bin/kwsd
install -Dm644 -t /etc/kwsd config.yaml
install -Dm644 systemd/sysusers.conf /etc/sysusers.d/kwsd.conf
install -Dm644 -t /etc/systemd/system systemd/kwsd.service
systemd-sysusers

mkdir -p /run/sound /etc/systemd/system/kwsd.service.d
printf 'pcm.!default { type pulse device mouth.monitor }\\nctl.!default { type pulse }\\n' > /etc/asound.conf
printf '[Service]\\nEnvironment=PULSE_SERVER=unix:SOUND LD_LIBRARY_PATH=/opt/python/lib\\n' \\
    > /etc/systemd/system/kwsd.service.d/tests.conf
cat > /etc/systemd/system/sound-server.service <<'UNIT'
[Service]
Environment=HOME=/run/sound XDG_RUNTIME_DIR=/run/sound
ExecStart=/usr/bin/pulseaudio -n --daemonize=no --exit-idle-time=-1 --use-pid-file=no \\
    "--load=module-native-protocol-unix auth-anonymous=1 socket=SOUND" "--load=module-null-sink sink_name=mouth"
UNIT
printf '[Unit]\\nWants=systemd-journald.service sound-server.service\\n' > /etc/systemd/system/tests.target
export container=tests
exec /lib/systemd/systemd --system --unit=tests.target --log-target=journal --show-status=0
""".replace("SOUND", SOUND)


def why_not() -> str:
    """Why no such machine can be had here; empty if it can."""
    if os.geteuid() != 0:
        return "only root can run a systemd of its own"
    missing = [means for means in MEANS if not (Path(means).exists() or shutil.which(means))]
    if missing:
        return f"not installed: {', '.join(missing)}"
    attempt = subprocess.run(
        ["unshare", "--fork", "--pid", "--mount", "--cgroup", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
        capture_output=True, check=False,
    )  # fmt: skip
    return "" if attempt.returncode == 0 else f"no namespaces here: {attempt.stderr.decode().strip()}"


class Machine:
    """Up when the `with` is entered; gone with everything in it when it is left."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._init = 0

    def __enter__(self) -> "Machine":
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PLACE": str(self._folder),
            "PYTHON": sys.base_prefix,
            "VENV": sys.prefix,
            "REPOSITORY": str(REPOSITORY),
        }
        self._log = (self._folder.parent / "boot.log").open("wb")
        self._process = subprocess.Popen(
            ["unshare", "--fork", "--kill-child", "--pid", "--mount", "--cgroup", "--ipc", "--uts", "bash", "-c", BOOT],
            env=environment, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
        )  # fmt: skip
        deadline = time.monotonic() + 60.0
        while time.monotonic() < deadline and self._process.poll() is None:
            self._init = self._find_init()
            if self._init and self.has_sound():
                return self
            time.sleep(0.1)
        self.__exit__()
        raise RuntimeError(f"systemd did not come up: {(self._folder.parent / 'boot.log').read_text()}")

    def _find_init(self) -> int:
        """The process that is number 1 in there, once it is systemd."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for child in children:
            if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                return int(child)
        return 0

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def run(self, *command: str, check: bool = True, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """A command in there, as root."""
        entered = ["nsenter", "--all", f"--target={self._init}", *command]
        result = subprocess.run(entered, capture_output=True, text=True, check=False, timeout=timeout, cwd="/")
        if check and result.returncode != 0:
            raise AssertionError(f"{command}: exit {result.returncode}: {result.stdout}{result.stderr}")
        return result

    def shell(self, script: str, *, check: bool = True) -> str:
        """What a shell script prints in there."""
        return self.run("bash", "-c", script, check=check).stdout

    def show(self, *properties: str) -> dict[str, str]:
        """Properties of kwsd.service."""
        lines = self.run("systemctl", "show", "kwsd", f"--property={','.join(properties)}").stdout.splitlines()
        return dict(line.split("=", 1) for line in lines)

    def journal(self) -> list[str]:
        """What kwsd wrote since the machine came up."""
        written = "journalctl --sync; journalctl --unit=kwsd --output=cat _SYSTEMD_UNIT=kwsd.service"
        return self.shell(written).splitlines()

    def has_sound(self) -> bool:
        """Whether the sound server answers; that its service is active does not say so."""
        return self.run("env", f"PULSE_SERVER=unix:{SOUND}", "pactl", "info", check=False).returncode == 0

    def speak(self, recording: Path) -> None:
        """Play a recording of the repository into the microphone."""
        path = Path("/opt/repository") / recording.relative_to(REPOSITORY)
        self.run("env", f"PULSE_SERVER=unix:{SOUND}", "paplay", "--device=mouth", str(path))
