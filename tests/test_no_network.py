"""Nothing leaves the machine: kwsd and what it is built on never ask for a network socket."""

import re
import shutil
import subprocess
import time

import pytest
from running import KWSD, clean_environment

LONG_ENOUGH_S = 14.0  # ONNX Runtime, where nobody forbids it, first reports nine seconds after it was loaded
NETWORK = re.compile(r"socket\((?:AF_INET|AF_PACKET|AF_NETLINK).*")


def may_trace():
    if not shutil.which("strace"):
        return False
    return subprocess.run(["strace", "-o", "/dev/null", "true"], check=False).returncode == 0


@pytest.mark.skipif(not may_trace(), reason="strace is not installed, or may not trace here")
def test_the_daemon_asks_for_no_network_socket(tmp_path):
    log = tmp_path / "sockets"
    daemon = subprocess.Popen(
        [
            "strace", "--follow-forks", "--trace=socket", "-o", log,
            KWSD, "run", "--source", "-", "--set", f"sinks.socket.path={tmp_path}/socket",
        ],
        env=clean_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    daemon.stdin.write(bytes(2 * 32_000))
    daemon.stdin.flush()
    assert b'"ready"' in daemon.stdout.readline()
    time.sleep(LONG_ENOUGH_S)
    daemon.communicate()
    assert daemon.returncode == 0
    asked = log.read_text()
    assert "AF_UNIX" in asked  # strace saw the event socket, and so would have seen others
    assert NETWORK.findall(asked) == []
