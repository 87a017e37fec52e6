"""What events start: real programs and real webhooks, started by a real daemon."""

import asyncio
import contextlib
import http.server
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from running import PATIENCE_S, Running

from kwsd.config import HookConfig
from kwsd.daemon import _is_of_nobody
from kwsd.errors import CONFIG, NO_PERMISSION, ConfigError
from kwsd.recording import DEMO, read_recording
from kwsd.sinks.hooks import _kill_group, make_hooks


def wait_until(happened):
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s"
        time.sleep(0.02)


@pytest.fixture
def heard(tmp_path, environment):
    """`heard(yaml)` has a daemon with these hooks hear the demo recording, and gives it when that is over, which it is
    not before `until(daemon)` is true: those who are started have little time to end when kwsd ends."""
    recording = (read_recording(DEMO) * 32767).astype("<i2").tobytes()

    def run(hooks, *, until=None, more="", trusted=None):
        config = tmp_path / "kwsd.yaml"
        config.write_text(f"streams: [{{source: pcm, path: '-', name: demo}}{more}]\nhooks:\n{hooks}")
        trusting = {"SSL_CERT_FILE": str(trusted)} if trusted else {}
        with Running("--config", str(config), environment=environment | trusting) as daemon:
            daemon.process.stdin.write(recording)
            daemon.process.stdin.flush()
            if until is not None:
                wait_until(lambda: until(daemon))
            daemon.process.stdin.close()
            assert daemon.finish() == 0
        return daemon

    return run


def has_lines(path, count=1):
    return path.exists() and path.read_text().count("\n") >= count


def failures(daemon):
    return [event for event in daemon.events if event["type"] == "hook_failed"]


def words(daemon):
    return [event["keyword"] for event in daemon.detections]


# --- programs ---


def test_a_program_gets_its_arguments_and_the_fields_of_the_event_without_a_shell(heard, tmp_path):
    script = tmp_path / "note"
    script.write_text(f'#!/bin/sh\necho "$1 $KWSD_EVENT_KEYWORD $KWSD_EVENT_STREAM" > {tmp_path}/words\n')
    script.chmod(0o755)
    hook = "  - {run: [./note, '$HOME; a'], keywords: [stop]}\n"
    daemon = heard(hook, until=lambda _: has_lines(tmp_path / "words"))
    assert failures(daemon) == []
    assert (tmp_path / "words").read_text() == "$HOME; a stop demo\n"


def test_relative_paths_in_a_command_start_from_the_folder_of_the_configuration(heard, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    hook = "  - {shell: 'echo $KWSD_EVENT_KEYWORD >> words', keywords: [stop]}\n"
    daemon = heard(hook, until=lambda _: has_lines(tmp_path / "words"))
    assert failures(daemon) == []


def test_programs_run_for_the_keywords_and_streams_they_are_for(heard, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(16_000), 16_000)
    daemon = heard(
        f"  - {{shell: 'cat >> {tmp_path}/stop', keywords: [stop], at_once: 1}}\n"
        f"  - {{shell: 'echo $KWSD_EVENT_KEYWORD >> {tmp_path}/all', streams: [demo], at_once: 1}}\n"
        f"  - {{shell: 'touch {tmp_path}/attic', streams: [attic], events: [detection]}}\n",
        more=f", {{source: file, path: {tmp_path}/silence.wav, name: attic, realtime: false}}",
        until=lambda _: has_lines(tmp_path / "stop") and has_lines(tmp_path / "all", 10),
    )
    assert failures(daemon) == []
    [line] = (tmp_path / "stop").read_text().splitlines()
    assert json.loads(line) == next(event for event in daemon.detections if event["keyword"] == "stop")
    assert (tmp_path / "all").read_text().split() == words(daemon)
    assert not (tmp_path / "attic").exists()


def test_the_last_event_starts_programs_as_well(heard, tmp_path):
    end = tmp_path / "end"
    for _ in range(3):  # they have a second to begin and to end
        heard(f"  - {{shell: 'echo $KWSD_EVENT_REASON >> {end}', events: [shutdown]}}\n")
        if end.exists() and end.read_text():
            break
    assert end.read_text() == "end of audio\n"


def test_a_program_knows_nothing_of_our_own_environment_with_systemd(heard, tmp_path):
    hook = f"  - {{shell: 'env > {tmp_path}/env; echo > {tmp_path}/done', keywords: [stop]}}\n"
    heard(hook, until=lambda _: has_lines(tmp_path / "done"))
    environment = (tmp_path / "env").read_text()
    assert "KWSD_EVENT_KEYWORD=" in environment and "NOTIFY_SOCKET" not in environment


@pytest.mark.parametrize(
    ("hook", "reason"),
    [
        ("shell: 'echo first >&2; echo no such saw >&2; exit 3'", "exit code 3: no such saw"),
        ("shell: 'kill -9 $$'", "signal 9"),
        ("shell: 'sleep 60', within_s: 0.3", "took longer than 0.3 s, and was ended"),
        ("shell: 'trap \"\" TERM; sleep 60 & wait; sleep 60', within_s: 0.3", "took longer than 0.3 s, and was ended"),
        ("post: 'http://127.0.0.1:9/'", "Cannot connect"),
    ],
)
def test_a_hook_that_fails_is_an_event_and_nothing_more(heard, hook, reason):
    daemon = heard(f"  - {{{hook}, keywords: [stop], name: saw}}\n", until=failures)
    [failure] = failures(daemon)
    assert (failure["hook"], failure["keyword"], failure["stream"]) == ("saw", "stop", "demo")
    assert reason in failure["reason"]
    assert failure["of"] in [event["id"] for event in daemon.detections]
    assert daemon.events[-1]["reason"] == "end of audio"


def test_what_a_program_leaves_in_the_background_is_not_waited_for(heard):
    daemon = heard("  - {shell: 'sleep 30 & exit 1', keywords: [stop]}\n", until=failures)
    assert [failure["reason"] for failure in failures(daemon)] == ["exit code 1"]


def test_what_a_program_leaves_in_the_background_may_complain(heard, tmp_path):
    job = f"(sleep 0.5; echo noise >&2; sleep 0.1; echo noise >&2; touch {tmp_path}/done) &"
    daemon = heard(f"  - {{shell: '{job}', keywords: [stop]}}\n", until=lambda _: (tmp_path / "done").exists())
    assert failures(daemon) == []


def test_no_more_run_or_wait_than_may(heard):
    daemon = heard("  - {shell: 'sleep 60', at_once: 1, waiting: 1}\n")
    reasons = {failure["reason"] for failure in failures(daemon)}
    assert reasons == {"not started: 1 run and 1 wait"}
    assert len(failures(daemon)) == len(words(daemon)) - 2


def test_programs_that_run_when_kwsd_stops_are_ended_with_what_they_started(heard, tmp_path):
    hook = f"  - {{shell: 'sleep 30 & echo $! > {tmp_path}/pid; wait', keywords: [stop]}}\n"
    heard(hook, until=lambda _: has_lines(tmp_path / "pid"))
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().split()[2]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("still there")


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("limit", ["5", "60"])
def test_not_even_those_that_ignore_sigterm_stay(heard, tmp_path, limit):
    inner = f'trap \\"\\" TERM; echo $$ >> {tmp_path}/pids; while :; do sleep 0.1; done'
    hook = f"  - {{shell: \"sh -c '{inner}' & {inner}\", keywords: [stop], within_s: {limit}}}\n"
    heard(hook, until=failures if limit == "5" else lambda _: has_lines(tmp_path / "pids", 2))
    deadline = time.monotonic() + 5
    pids = (tmp_path / "pids").read_text().split()
    while not all(gone(pid) for pid in pids):
        assert time.monotonic() < deadline, "still there"
        time.sleep(0.05)
    assert len(pids) == 2


def test_a_program_beside_the_config_is_that_one_and_none_of_the_system(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "id").write_text("#!/bin/sh\n")
    resolve = Path(".").joinpath  # noqa: PTH201 - as a config named without its folder has it
    with pytest.raises(ConfigError, match=r"hooks\.0\.run: .*/id may not be run; chmod \+x it"):
        make_hooks((HookConfig(run=["./id"]),), ("go",), resolve)
    (tmp_path / "id").chmod(0o755)
    [hook] = make_hooks((HookConfig(run=["./id"]),), ("go",), resolve)
    assert hook.command == (str(tmp_path / "id"),)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
def test_one_that_became_somebody_else_cannot_be_ended_and_does_not_end_us():
    program = subprocess.Popen(["sleep", "30"], start_new_session=True)
    child = os.fork()
    if not child:
        os.setuid(65534)  # who may not end what is root's
        try:
            _kill_group(program.pid, signal.SIGTERM)
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert program.poll() is None and os.waitstatus_to_exitcode(status) == 0
    program.kill()
    program.wait()


@contextlib.contextmanager
def muted_and_unmuted(config, environment):
    """A daemon that has told of both, and a connection for commands."""
    with (
        Running("--config", str(config), environment=environment) as daemon,
        socket.socket(socket.AF_UNIX) as control,
    ):
        daemon.process.stdin.write(bytes(64_000))
        daemon.process.stdin.flush()
        daemon.wait_for("ready")
        control.connect(f"{environment['XDG_RUNTIME_DIR']}/kwsd/events.sock")
        control.sendall(b'{"command": "mute"}\n{"command": "unmute"}\n')
        for _ in range(2):
            daemon.wait_for("mute")
        yield daemon, control


def waiting_in(folder):
    """A shell script that is done when there is a file called `go`."""
    return f"while [ ! -e {folder}/go ]; do sleep 0.05; done; echo done >> {folder}/done"


def test_a_reload_lets_those_that_run_go_on_and_tells_of_those_that_waited(tmp_path, environment):
    config = tmp_path / "kwsd.yaml"
    text = "streams: [{source: pcm, name: a, path: '-'}]\nhooks: [HOOK]\n"
    hook = f"{{shell: '{waiting_in(tmp_path)}', events: [mute], at_once: 1, name: slow}}"
    config.write_text(text.replace("HOOK", hook))
    with muted_and_unmuted(config, environment) as (daemon, control):
        config.write_text(text.replace("HOOK", ""))
        control.sendall(b'{"command": "reload"}\n')
        assert "gone from the configuration" in daemon.wait_for("hook_failed")["reason"]
        (tmp_path / "go").touch()
        wait_until(lambda: has_lines(tmp_path / "done"))
        daemon.stop()
    assert (tmp_path / "done").read_text() == "done\n" and len(failures(daemon)) == 1


def test_what_waits_for_a_hook_is_not_given_to_another_one_in_its_place(tmp_path, environment):
    config = tmp_path / "kwsd.yaml"
    text = "streams: [{source: pcm, name: a, path: '-'}]\nhooks: [HOOKS]\n"
    slow = f"{{shell: '{waiting_in(tmp_path)}', events: [mute], at_once: 1}}"
    other = f"{{shell: 'touch {tmp_path}/wrong', events: [shutdown], at_once: 1}}"
    config.write_text(text.replace("HOOKS", f"{slow}, {other}"))
    with muted_and_unmuted(config, environment) as (daemon, control):
        config.write_text(text.replace("HOOKS", other))
        control.sendall(b'{"command": "reload"}\n')
        assert "gone from the configuration" in daemon.wait_for("hook_failed")["reason"]
        (tmp_path / "go").touch()
        wait_until(lambda: has_lines(tmp_path / "done"))
        time.sleep(0.5)
        assert not (tmp_path / "wrong").exists()
        daemon.stop()


# --- webhooks ---


@pytest.fixture
def web():
    """A server that keeps what is posted to it, as (path, headers, body); /no answers 500, /slow after 5 s."""
    posted = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            posted.append((self.path, dict(self.headers), body))
            if self.path == "/slow":
                time.sleep(2)
            self.send_response({"/no": 500, "/moved": 302}.get(self.path, 204))
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.posted, server.url = posted, f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()


def test_a_webhook_gets_the_event_as_its_body_with_the_secret(heard, web, tmp_path):
    token = tmp_path / "token"
    token.write_text("abc\n")
    token.chmod(0o600)
    daemon = heard(f"  - {{post: '{web.url}/hook', token_file: token, keywords: [stop]}}\n", until=lambda _: web.posted)
    assert failures(daemon) == []
    [(path, headers, body)] = web.posted
    assert path == "/hook" and headers["Authorization"] == "Bearer abc"
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body)["keyword"] == "stop"


@pytest.mark.parametrize(
    ("path", "within_s", "reason"),
    [("no", 20, "HTTP 500"), ("moved", 20, "HTTP 302"), ("slow", 0.5, "no answer within 0.5 s")],
)
def test_a_webhook_that_says_no_moves_or_does_not_answer_is_told(heard, web, path, within_s, reason):
    hook = f"  - {{post: '{web.url}/{path}', keywords: [stop], within_s: {within_s}}}\n"
    [failure] = failures(heard(hook, until=failures))
    assert failure["reason"].startswith(reason)
    wait_until(lambda: web.posted)
    assert [path for path, _, _ in web.posted] == [f"/{path}"]


def test_whoever_the_system_trusts_is_posted_to_though_he_signed_as_openssl_does_unasked(heard, web, certificates):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificates / "broker.pem", certificates / "broker.key")
    web.socket = tls.wrap_socket(web.socket, server_side=True)
    hook = f"  - {{post: '{web.url.replace('http:', 'https:')}/x', keywords: [stop]}}\n"
    [failure] = failures(heard(hook, until=failures))
    assert "CERTIFICATE_VERIFY_FAILED" in failure["reason"] and web.posted == []
    assert failures(heard(hook, trusted=certificates / "ca.pem", until=lambda _: web.posted)) == []
    assert [path for path, _, _ in web.posted] == ["/x"]


# --- configuration ---


@pytest.mark.parametrize(
    ("hook", "complaint"),
    [
        ("{}", "hooks.0: say one of run"),
        ("{run: [ls], post: 'http://a/'}", "hooks.0: say one of run"),
        ("{run: []}", "hooks.0.run"),
        ("{run: ls}", "hooks.0.run"),
        ("{run: [no-such-program]}", "hooks.0.run: no-such-program is not there"),
        ("{run: [./kwsd.yaml]}", "kwsd.yaml may not be run; chmod +x it"),
        ("{shell: ls, events: [wombat]}", "no event is called 'wombat'"),
        ("{shell: ls, events: [hook_failed]}", "would start itself"),
        ("{shell: ls, keywords: [wombat]}", "hooks.0.keywords: there is no keyword 'wombat'"),
        ("{shell: ls, token_file: x}", "hooks.0.token_file: is for post"),
        ('{shell: "a\\0b"}', "hooks.0: has a NUL character"),
        ("{post: 'ftp://a/'}", "hooks.0.post: ftp://a/ is no address"),
        ("{post: 'http://a:b/'}", "is no address"),
        ("{post: 'http:///a'}", "hooks.0.post: http:///a is no address"),
        ("{post: 'http://me:secret@a/'}", "hooks.0.post: has a user or a password in it; put a token into a file"),
        ("{post: 'http://a/?to=me@b', token_file: none}", "hooks.0.token_file: "),
        ("{post: 'http://a/', token_file: none}", "hooks.0.token_file: "),
        ("{shell: ls, within_s: 0}", "hooks.0.within_s"),
        ("{shell: ls, at_once: 0}", "hooks.0.at_once"),
        ("{shell: ls, name: a}, {shell: ls, name: a}", "hooks.1.name: 'a' is taken"),
    ],
)
def test_a_wrong_hook_is_refused_before_anything_is_heard(kwsd, tmp_path, hook, complaint):
    config = tmp_path / "kwsd.yaml"
    config.write_text(f"hooks: [{hook}]\n")
    kwsd("check", "--config", config).refused(CONFIG, complaint)


def test_a_secret_that_all_may_read_is_refused(tmp_path):
    token = tmp_path / "token"
    token.write_text("abc")
    token.chmod(0o644)
    with pytest.raises(ConfigError, match=r"hooks\.0\.token_file.*chmod o-r") as refused:
        make_hooks([HookConfig(post="http://a/", token_file="token")], ("go",), lambda path: tmp_path / path)
    assert refused.value.exit_code in (CONFIG, NO_PERMISSION)


def test_a_pipe_of_which_nobody_asks_why_it_broke_ends_no_daemon():
    async def scenario():
        async def fail():
            raise BrokenPipeError

        task = asyncio.ensure_future(fail())
        await asyncio.wait([task])
        task.exception()
        return [_is_of_nobody({"future": future}) for future in (asyncio.Future(), task)]

    assert asyncio.run(scenario()) == [True, False]


def test_what_is_done_and_failed_is_counted(heard):
    def counted(daemon):
        if failures(daemon):  # then it heeds the signal
            daemon.process.send_signal(signal.SIGUSR1)
        log = "".join(daemon.errors)
        return "hooks (hook=good, how=done): 1" in log and "hooks (hook=bad, how=failed): 1" in log

    hooks = "  - {shell: 'true', keywords: [stop], name: good}\n  - {shell: 'false', keywords: [stop], name: bad}\n"
    assert len(failures(heard(hooks, until=counted))) == 1
