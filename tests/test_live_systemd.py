"""The system unit as a user installs it, under a real systemd, in its real sandbox, with a real microphone."""

import json
import re
import signal
import time

import pytest
from live_systemd import Machine, why_not

from kwsd.recording import DEMO

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

READ_EVENTS = "socat -u UNIX-CONNECT:/run/kwsd/events.sock -"
LOG_LINES = ("events on ", "listening on ", "ready", "reload: ", "reloaded", "stopped: ")
OF_A_BUSY_MACHINE = ("no audio from mic", "audio from mic again", "overrun on ")  # its sound server was held up


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("machine") / "place"
    folder.mkdir()
    with Machine(folder) as machine:
        yield machine


@pytest.fixture
def service(machine):
    """kwsd.service, started from nothing with the config it came with."""
    machine.shell("systemctl stop kwsd; systemctl start sound-server; systemctl reset-failed kwsd", check=False)
    wait_until(machine.has_sound, 20)
    machine.shell("install -m644 -t /etc/kwsd /opt/repository/config.yaml")
    machine.run("systemctl", "start", "kwsd")
    return machine


def wait_until(happened, within_s):
    """What `happened` returns once that is true."""
    deadline = time.monotonic() + within_s
    while not (result := happened()):
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.2)
    return result


def events(machine, kind):
    lines = [json.loads(line) for line in machine.journal() if line.startswith("{")]
    return [event for event in lines if event["type"] == kind]


def running(machine):
    """The process number of an active service, else 0."""
    state = machine.show("ActiveState", "MainPID")
    return int(state["MainPID"]) if state["ActiveState"] == "active" else 0


def test_start_returns_when_it_hears_and_says_so(service):
    state = service.show("ActiveState", "StatusText", "Result")
    assert state == {"ActiveState": "active", "StatusText": "listening on mic; 0 words heard", "Result": "success"}
    wait_until(lambda: events(service, "ready"), 10)


def test_nothing_but_its_own_lines_and_events_are_in_the_journal(service):
    """Libraries that complain of the sandbox would show here."""
    for line in service.journal():
        assert line.startswith(("{", *LOG_LINES, *OF_A_BUSY_MACHINE)), line


def test_words_spoken_are_in_the_journal_the_status_and_the_socket(service):
    before = len(events(service, "detection"))
    service.shell(f"timeout 60 {READ_EVENTS} > /run/heard 2>/dev/null &")
    wait_until(lambda: '"hello"' in service.shell("cat /run/heard", check=False), 10)
    service.speak(DEMO)

    def agree():
        heard = events(service, "detection")[before:]
        read = [json.loads(line) for line in service.shell("grep '}$' /run/heard").splitlines()]
        return (
            len(heard) >= 5
            and read[0]["type"] == "hello"
            and [event["id"] for event in read if event["type"] == "detection"] == [event["id"] for event in heard]
            and service.show("StatusText")["StatusText"]
            == f"listening on mic; {len(heard)} words heard; last heard: {heard[-1]['keyword']}"
        )

    wait_until(agree, 10)


def first_line(machine, command):
    """Of what a command says, whose end is not waited for."""
    return machine.shell(f'read -r line < <(timeout 20 {command} 2>&1); echo "$line"')


@pytest.mark.parametrize(("group", "may"), [("nogroup", False), ("kwsd", True)])
def test_only_its_group_may_read_the_events(service, group, may):
    somebody = f"setpriv --reuid=nobody --regid={group} --clear-groups"
    said = first_line(service, f"{somebody} {READ_EVENTS}")
    assert ('"hello"' in said) is may
    assert ("Permission denied" in said) is not may


def test_a_reload_takes_a_good_config_and_keeps_the_old_one_over_a_bad_one(service):
    pid = running(service)
    service.shell("sed -i 's/^keywords: all/keywords: {stop: {}}/' /etc/kwsd/config.yaml && systemctl reload kwsd")
    wait_until(lambda: events(service, "reload"), 30)
    assert events(service, "reload")[-1]["ok"] is True
    hello = json.loads(first_line(service, READ_EVENTS))
    assert hello["keywords"] == ["stop"]
    service.shell("sed -i 's/hop_ms: 100/hop_ms: -1/' /etc/kwsd/config.yaml && systemctl reload kwsd")
    wait_until(lambda: not events(service, "reload")[-1]["ok"], 30)
    wait_until(lambda: "reload refused" in service.show("StatusText")["StatusText"], 30)
    assert "hop_ms" in events(service, "reload")[-1]["error"]
    assert running(service) == pid


def test_the_sandbox_holds(service):
    pid = running(service)
    status = dict(re.findall(r"(\w+):\t(.*)", service.shell(f"cat /proc/{pid}/status")))
    assert status["Uid"].split() == [service.shell("id -u kwsd").strip()] * 4
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    inside = f"nsenter --target={pid} --mount --net bash -c"
    for place in ("/usr", "/etc", "/var", "/opt"):
        assert "Read-only" in service.shell(f"{inside} 'touch {place}/x' 2>&1", check=False)
    assert service.shell(f"{inside} 'ls -A /root /home'").split() == ["/home:", "/root:"]
    interfaces = service.shell(f"{inside} 'tail -n +3 /proc/net/dev'")
    assert [line.split(":")[0].strip() for line in interfaces.splitlines()] == ["lo"]


def test_a_hung_daemon_is_ended_by_the_watchdog_and_started_anew(service):
    pid = running(service)
    service.run("kill", "-STOP", str(pid))
    anew = wait_until(lambda: (now := running(service)) != pid and now, 60)
    assert anew
    assert "watchdog" in service.shell("journalctl --unit=kwsd --output=cat _PID=1").lower()


def test_who_is_muted_stays_so_after_a_crash(service):
    service.shell("kwsd ctl mute")
    pid = running(service)
    service.run("kill", "-KILL", str(pid))
    wait_until(lambda: (now := running(service)) != pid and now, 30)
    assert "mic: muted" in service.show("StatusText")["StatusText"]
    before = len(events(service, "detection"))
    service.speak(DEMO)
    assert len(events(service, "detection")) == before
    service.shell("kwsd ctl unmute")
    assert service.shell("ls -A /var/lib/kwsd").strip() == ""
    service.speak(DEMO)
    wait_until(lambda: len(events(service, "detection")) - before >= 5, 10)


def test_a_sound_server_that_is_restarted_is_heard_again_by_the_same_daemon(service):
    pid = running(service)
    lost, restored = (len(events(service, kind)) for kind in ("audio_lost", "audio_restored"))
    service.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "sound-server")
    wait_until(lambda: len(events(service, "audio_lost")) > lost, 10)
    wait_until(lambda: "NOT HEARING mic: lost" in service.show("StatusText")["StatusText"], 10)
    service.run("systemctl", "start", "sound-server")
    wait_until(lambda: len(events(service, "audio_restored")) > restored, 15)
    before = len(events(service, "detection"))
    service.speak(DEMO)
    wait_until(lambda: len(events(service, "detection")) - before >= 5, 10)
    assert running(service) == pid and service.show("NRestarts")["NRestarts"] == "0"


def test_one_that_stays_away_has_the_watchdog_end_it_and_is_waited_for(service):
    pid = running(service)
    service.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "sound-server")
    wait_until(lambda: int(service.show("NRestarts")["NRestarts"]) >= 1, 45)  # in vain: there is no microphone
    doctor = "kwsd doctor --set streams=[] --set listen.on=[unix:/run/in]"
    restarts = r"warn  system unit: activating \(auto-restart.*\n.*journalctl -u kwsd says why"
    wait_until(lambda: re.search(restarts, service.shell(doctor, check=False)), 20)
    service.run("systemctl", "start", "sound-server")
    anew = wait_until(lambda: running(service), 20)
    assert anew != pid


def test_stop_ends_it_at_once_with_everything_said(service):
    pid = running(service)
    begun = time.monotonic()
    service.run("systemctl", "stop", "kwsd")
    assert time.monotonic() - begun < 5.0
    assert service.show("ActiveState", "Result", "ExecMainStatus") == {
        "ActiveState": "inactive",
        "Result": "success",
        "ExecMainStatus": "0",
    }
    assert events(service, "shutdown")[-1]["reason"] == signal.SIGTERM.name
    assert service.shell("ls /run/kwsd 2>&1; true").startswith("ls: cannot access")
    assert not service.shell(f"ls -d /proc/{pid} 2>/dev/null; true")


def test_a_bad_config_is_not_tried_again(service):
    service.run("systemctl", "stop", "kwsd")
    service.shell("echo 'hopp: 1' > /etc/kwsd/config.yaml; systemctl start kwsd", check=False)
    state = service.show("ActiveState", "ExecMainStatus", "NRestarts")
    assert state == {"ActiveState": "failed", "ExecMainStatus": "78", "NRestarts": "0"}
    wait_until(lambda: any("hopp" in line for line in service.journal()), 10)
