"""The Debian package: what it lacks, and the one that KWSD_DEB names installs, hears and goes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from live_systemd import REPOSITORY, Machine, why_not
from running import clean_environment
from test_live_systemd import wait_until

from kwsd.cli import TRAINING
from kwsd.recording import DEMO

DEB = os.environ.get("KWSD_DEB", "") and str(Path(os.environ["KWSD_DEB"]).resolve())
built = pytest.mark.skipif(not DEB, reason="make deb takes minutes: name what it built in KWSD_DEB")
on_a_machine = pytest.mark.skipif(bool(why_not()), reason=why_not())


def requirements(*options):
    command = [sys.executable, REPOSITORY / "package" / "requirements.py", *options, REPOSITORY / "setup.cfg"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {re.match(r"[\w.-]+", line)[0] for line in lines}


def test_the_package_holds_all_that_kwsd_asks_for_but_what_is_for_training():
    assert requirements("--left-out") == TRAINING
    assert requirements() >= {"numpy", "onnxruntime", "sounddevice", "msgspec", "shtab", "rich", "aiohttp"}
    assert not requirements() & requirements("--left-out")


# --- a package ---


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deb") / "root"
    subprocess.run(["dpkg-deb", "--raw-extract", DEB, folder], check=True)
    return folder


@built
def test_it_hears_wherever_it_lies(unpacked):
    command = [unpacked / "usr/lib/kwsd/bin/python", "-m", "kwsd", "replay"]
    done = subprocess.run([*command, DEMO], capture_output=True, check=True, cwd="/", env=clean_environment())
    assert done.stdout.count(b'"type":"detection"') == 10
    assert not list(unpacked.glob("usr/lib/kwsd/lib/python3.*/site-packages/torch*"))


@built
def test_the_engine_in_it_is_our_own(unpacked):
    script = "from kwsd.engines import layout; layout.functions('dstcn')"
    subprocess.run([unpacked / "usr/lib/kwsd/bin/python", "-c", script], check=True, cwd="/", env=clean_environment())


@built
def test_it_knows_nothing_of_where_it_was_built(unpacked):
    found = subprocess.run(["grep", "-rlE", "/tmp/tmp\\.", unpacked], capture_output=True, text=True, check=False)
    assert found.stdout == ""
    assert (unpacked / "usr/lib/kwsd/bin/kwsd").read_text().startswith("#!/usr/lib/kwsd/bin/python\n")


@built
@on_a_machine
def test_it_installs_listens_is_renewed_and_goes(tmp_path):
    (tmp_path / "place").mkdir()
    with Machine(tmp_path / "place") as machine:
        machine.shell(
            f"cp {DEB} /opt/kwsd.deb; rm -r /opt/kwsd /etc/kwsd /usr/local/bin/kwsd /etc/sysusers.d/kwsd.conf"
        )
        machine.shell("rm /etc/systemd/system/kwsd.service; dpkg --install /opt/kwsd.deb")
        assert machine.shell("systemctl is-enabled kwsd; systemctl is-active kwsd", check=False).split() == [
            "disabled",
            "inactive",
        ]
        machine.shell("systemctl enable --now kwsd")
        machine.speak(DEMO)
        assert machine.shell("journalctl --unit kwsd --output cat").count('"type":"detection"') >= 5
        old = machine.show("MainPID")["MainPID"]
        machine.shell("echo '# mine' >> /etc/kwsd/config.yaml; dpkg --install /opt/kwsd.deb")
        is_new = f"systemctl is-active kwsd && systemctl show --property=MainPID kwsd | grep --invert-match '={old}$'"
        wait_until(lambda: "MainPID=" in machine.shell(is_new, check=False), 30)
        assert machine.shell("tail -n 1 /etc/kwsd/config.yaml") == "# mine\n"
        pipe = "streams: [{source: pcm, path: /opt/pipe}]"
        machine.shell(f"mkfifo --mode=644 /opt/pipe; echo '{pipe}' > /etc/kwsd/config.yaml")
        machine.shell("systemctl --no-block restart kwsd; dpkg --install /opt/kwsd.deb")  # nobody ever writes into it
        machine.shell("dpkg --purge kwsd")
        left = (
            "find /etc /usr /var/lib/systemd -name '*kwsd*' ! -path '*/kwsd.service.d'; ls -d /run/kwsd /var/lib/kwsd"
        )
        assert machine.shell(left, check=False) == ""


def test_the_name_of_a_package_is_no_setting(kwsd):
    assert kwsd("check", more={"KWSD_DEB": "kwsd.deb"}).code == 0
