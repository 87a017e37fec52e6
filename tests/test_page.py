"""The page, in a real browser, of a real daemon; and what scripts use of it."""

import contextlib
import http.client
import json
import shutil
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from running import RECOMMENDED, Running, free_port
from sound_server import SoundServer, missing
from test_endpoint import address_of, serving

from kwsd.config import load_config
from kwsd.endpoint import HEADER_S
from kwsd.errors import CONFIG
from kwsd.recording import DEMO

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LONG_MS = 20_000
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed; make test installs it")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A tab on a phone in the dark; what goes wrong in it fails the test."""
    context = browser.new_context(viewport=PHONE, color_scheme="dark")
    tab = context.new_page()
    tab.set_default_timeout(LONG_MS)
    errors = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    yield tab
    context.close()
    assert errors == []


@pytest.fixture
def daemon(environment):
    """Hears the demo recording in real time as the kitchen."""
    stream = f"streams=[{{source: file, path: {DEMO}, name: kitchen}}]"
    with Running("--set", stream, *serving(), environment=environment) as running:
        running.address = address_of(running)
        running.wait_for("ready")
        yield running


def number(locator):
    return float(locator.inner_text().split()[0])


# --- in the browser ---


@in_browser
@pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())}; make test installs it")
def test_words_said_into_the_microphone_appear(page, tmp_path, three_words):
    server = SoundServer(tmp_path)
    server.start()
    try:
        with Running("--set", "streams.0.name=mic", *serving(), environment=server.environment) as daemon:
            daemon.wait_for("ready")
            page.goto(f"http://{address_of(daemon)}/")
            page.get_by_text("listening", exact=True).wait_for()
            speaking = threading.Thread(target=server.speak, args=(three_words,))
            speaking.start()
            page.locator("#events li.detection").first.wait_for()
            page.locator(".word.heard").first.wait_for()
            word = page.locator("#events li.detection b").first.inner_text()
            assert word in {event["keyword"] for event in daemon.detections}
            assert number(page.locator("[data-stream=mic] .dbfs")) > -90
            assert page.locator("[data-stream=mic] [data-word]").count() == 10
            mark = page.locator("[data-stream=mic] [data-word=down] .mark").get_attribute("style")
            assert f"{100 * RECOMMENDED['down']:g}%" in mark, "the threshold is where it should be"
            daemon.stop()
            page.get_by_text("stopped: SIGTERM").or_(page.get_by_text("connection lost")).wait_for()
            speaking.join()
    finally:
        server.kill()


@in_browser
def test_a_word_that_another_room_heard_as_well_says_so(page, environment):
    rooms = ", ".join(f"{{source: file, path: {DEMO}, name: {name}}}" for name in ("kitchen", "hall"))
    settings = ("--set", f"streams=[{rooms}]", "--set", "arbitration={groups: [['*']], gain_db: {kitchen: 6}}")
    with Running(*settings, *serving(), environment=environment) as daemon:
        page.goto(f"http://{address_of(daemon)}/")
        page.locator("#events li.detection").first.wait_for()
        assert page.locator("#events li.detection").last.inner_text().endswith("kitchen, 0.90 ≥ 0.70, also hall")


@in_browser
def test_clips_can_be_listened_to_and_sorted(page, environment, tmp_path):
    stream = f"streams=[{{source: file, path: {DEMO}, name: a/b}}]"
    settings = ("--set", stream, "--set", f"sinks.clips.folder={tmp_path}/clips")
    with Running(*settings, *serving(), environment=environment) as daemon:
        page.goto(f"http://{address_of(daemon)}/")
        stop = page.locator("#clips li[data-clip^='heard/stop/']")
        stop.wait_for()
        assert stop.locator(".where").inner_text() == "a/b"
        stop.get_by_label("Listen to stop in a/b").click()
        stop.locator(".play.playing").wait_for()
        stop.locator(".play:not(.playing)").wait_for()  # a second later it is over
        stop.get_by_label("What it was").select_option("stop")
        stop.wait_for(state="detached")
        other = page.locator("#clips li[data-clip^='heard/yes/']")
        other.wait_for()
        other.get_by_label("What it was").select_option("none of the words")
        other.wait_for(state="detached")
        daemon.stop()
    kept = {path.parent.name: path.name for path in (tmp_path / "clips/sorted").rglob("*.wav")}
    assert set(kept) == {"stop", "_unknown_"} and all(name.startswith("a%2Fb_nohash_") for name in kept.values())


@in_browser
def test_where_no_clips_are_kept_there_is_nothing_of_them(page, daemon):
    page.goto(f"http://{daemon.address}/")
    page.locator("#events li.detection").first.wait_for()
    assert page.locator("#clips-section").is_hidden()


@in_browser
def test_a_slider_changes_the_threshold_and_the_suggestion_can_be_used(page, daemon, tmp_path):
    page.goto(f"http://{daemon.address}/")
    slider = page.get_by_label("Threshold of stop")
    slider.wait_for()
    assert slider.input_value() == str(RECOMMENDED["stop"]) and slider.get_attribute("min") == "0.01"
    higher = round(RECOMMENDED["stop"] + 0.02, 3)
    slider.focus()
    for _ in range(4):
        slider.press("ArrowRight")
    while (event := daemon.wait_for("threshold"))["threshold"] != higher:
        pass
    assert event["keyword"] == "stop"
    page.get_by_text("Keep them").click()
    page.locator("#yaml", has_text=str(higher)).wait_for()
    config = tmp_path / "suggested.yaml"
    config.write_text(page.locator("#yaml").inner_text())
    keywords = load_config(config, environment={}).keywords
    assert keywords["stop"].threshold == higher and keywords["on"].threshold is None and len(keywords) == 10
    page.locator("[data-word=stop] .back").click()
    assert daemon.wait_for("threshold")["threshold"] == RECOMMENDED["stop"]
    page.locator("#yaml", has_text="all").wait_for()
    assert yaml.safe_load(page.locator("#yaml").inner_text()) == {"keywords": "all"}


@in_browser
def test_muting_shows_and_silences(page, daemon):
    page.goto(f"http://{daemon.address}/")
    kitchen = page.locator("[data-stream=kitchen]")
    mute = kitchen.get_by_role("button", name="Mute kitchen")
    mute.click()
    assert daemon.wait_for("mute")["muted"] is True
    kitchen.get_by_text("Muted", exact=True).wait_for()
    assert mute.get_attribute("aria-pressed") == "true"
    assert kitchen.locator(".badge").inner_text() == "muted"
    mute.click()
    assert daemon.wait_for("mute")["muted"] is False
    kitchen.get_by_text("hears", exact=True).wait_for()


@in_browser
def test_a_connection_that_is_lost_is_said_and_comes_back(page, environment):
    port = free_port()
    stream = f"streams=[{{source: file, path: {DEMO}, name: kitchen}}]"
    options = ("--set", stream, "--set", f"http.on=['tcp://127.0.0.1:{port}']")
    with Running(*options, environment=environment) as first:
        first.wait_for("ready")
        page.goto(f"http://127.0.0.1:{port}/")
        page.get_by_text("listening", exact=True).wait_for()
        first.process.kill()
        page.get_by_text("connection lost").wait_for()
    stricter = ("--set", "keywords={all: {}, stop: {threshold: 0.7777}}")
    with Running(*options, *stricter, environment=environment) as second:
        second.wait_for("ready")
        page.get_by_text("listening", exact=True).wait_for()
        page.locator("#yaml", has_text="0.7777").wait_for(state="attached")
        page.locator("#events li.detection").first.wait_for()
        second.process.send_signal(signal.SIGHUP)
        page.locator("#events li.reload").wait_for()


COUNTING = """
window.most = 0;
const ask = window.fetch;
let now = 0;
window.fetch = (path, ...options) => {
  if (path === "status") window.most = Math.max(window.most, ++now);
  return ask(path, ...options).finally(() => { if (path === "status") now -= 1; });
};
"""


@in_browser
def test_however_much_happens_it_asks_once_at_a_time_how_all_is_and_shows_the_last(page, daemon):
    page.add_init_script(COUNTING)
    held, slow = [], True

    def hold(request):
        if slow:
            held.append(request)
        else:
            request.continue_()

    page.route("**/status", hold)
    page.goto(f"http://{daemon.address}/")
    page.get_by_text("listening", exact=True).wait_for()
    for command in ("mute", "unmute", "mute", "unmute", "mute"):
        assert order(daemon.address, command=command)[0] == 200
    page.locator("#events li.mute").nth(4).wait_for()
    assert page.evaluate("most") == 1
    slow = False
    for request in held:
        request.continue_()
    page.locator("[data-stream=kitchen] .badge", has_text="muted").wait_for()
    assert page.evaluate("most") == 1


@in_browser
def test_words_nobody_listens_for_any_more_go(page, environment, tmp_path):
    config = tmp_path / "kwsd.yaml"
    text = f"streams: [{{source: file, path: {DEMO}, name: kitchen}}]\nhttp: {{on: ['tcp://127.0.0.1:0']}}\n"
    text += "keywords: WORDS\n"
    config.write_text(text.replace("WORDS", "all"))
    with Running("--config", str(config), environment=environment) as daemon:
        daemon.wait_for("ready")
        page.goto(f"http://{address_of(daemon)}/")
        page.locator("[data-stream=kitchen] [data-word=left]").wait_for()
        config.write_text(text.replace("WORDS", "{stop: {threshold: 0.7777}, go: {}}"))
        daemon.process.send_signal(signal.SIGHUP)
        page.locator("[data-stream=kitchen] [data-word=left]").wait_for(state="detached")
        assert page.locator("[data-stream=kitchen] [data-word]").count() == 2
        page.locator("#thresholds [data-word=stop] output", has_text="0.7777").wait_for()


@in_browser
@pytest.mark.parametrize("size", [PHONE, DESK])
def test_it_fits_and_follows_light_and_dark(browser, daemon, size):
    backgrounds = {}
    for scheme in ("light", "dark"):
        context = browser.new_context(viewport=size, color_scheme=scheme)
        tab = context.new_page()
        tab.goto(f"http://{daemon.address}/")
        tab.locator("[data-word=stop]").first.wait_for()
        assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing is cut off"
        small = tab.evaluate(
            "[...document.querySelectorAll('button')].filter(b => b.offsetParent && b.offsetHeight < 32).length"
        )
        assert small == 0, "buttons are large enough for a thumb"
        backgrounds[scheme] = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        context.close()
    assert backgrounds["light"] != backgrounds["dark"]


@contextlib.contextmanager
def guarded(secret, environment, folder):
    """A daemon that wants a secret, and hears the demo recording as the kitchen."""
    token = folder / secret
    token.write_text(f"{secret}\n")
    token.chmod(0o600)
    stream = f"streams=[{{source: file, path: {DEMO}, name: kitchen}}]"
    options = ("--set", stream, *serving("--set", f"http.token_file={token}", "--set", "sinks.socket.enabled=false"))
    with Running(*options, environment=environment) as running:
        running.address = address_of(running)
        running.wait_for("ready")
        yield running


def log_in(page, secret):
    page.get_by_label("The secret").fill(secret)
    page.get_by_role("button").click()


@in_browser
def test_with_a_token_it_asks_for_it_once(page, environment, tmp_path):
    with guarded("open sesame", environment, tmp_path) as daemon:
        address = daemon.address
        page.goto(f"http://{address}/")
        log_in(page, "wombat")
        page.get_by_text("That is not the secret").wait_for()
        page.goto(page.url)  # /login, as Enter in the address bar does
        log_in(page, "open sesame")
        page.locator("[data-stream=kitchen]").wait_for()
        page.reload()
        page.locator("[data-stream=kitchen]").wait_for()
        page.goto(f"data:text/html,<a href='http://{address}/'>kwsd</a>")
        page.get_by_text("kwsd").click()
        page.locator("[data-stream=kitchen]").wait_for()
        for path in ("/metrics", "/status", "/events", "/healthz", "/page.js"):
            assert ask(address, path)[0] == 401
            assert path == "/events" or ask(address, path, Authorization="Bearer open sesame")[0] == 200
        assert ask(address, "/status", Authorization="Bearer opens")[0] == 401
        [cookie] = page.context.cookies()
        assert ask(address, "/status", Cookie=f"{cookie['name']}={cookie['value']}")[0] == 200
        assert ask(address, "/status", Cookie=f"{cookie['name']}=open sesame")[0] == 401
        assert "open sesame" not in "".join(daemon.errors)


@in_browser
def test_two_on_one_machine_do_not_log_each_other_out(page, environment, tmp_path):
    with guarded("one", environment, tmp_path) as one, guarded("other", environment, tmp_path) as other:
        for daemon, secret in ((one, "one"), (other, "other")):
            page.goto(f"http://{daemon.address}/")
            log_in(page, secret)
            page.locator("[data-stream=kitchen]").wait_for()
        page.goto(f"http://{one.address}/")
        page.locator("[data-stream=kitchen]").wait_for()


# --- for scripts ---


def ask(address, path, body=None, method=None, **headers):
    """Status and text."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"http://{address}{path}", body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def order(address, **command):
    status, text = ask(address, "/command", json.dumps(command).encode(), Content_Type="application/json")
    return status, json.loads(text) if status in (200, 400) and text.startswith("{") else text


def server_sent(address, query, count):
    """The next events at /events: (type, event)."""
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("GET", f"/events{query}")
    answer = connection.getresponse()
    assert answer.status == 200 and answer.headers["Content-Type"] == "text/event-stream"
    told, kind = [], ""
    while len(told) < count:
        line = answer.readline().decode()
        assert line, told
        if line.startswith("event: "):
            kind = line.removeprefix("event: ").strip()
        elif line.startswith("data: "):
            told.append((kind, json.loads(line.removeprefix("data: "))))
    connection.close()
    return told


def test_events_are_sent_as_they_come_and_as_they_are_asked_for(daemon):
    told = server_sent(daemon.address, "?types=detection&streams=kitchen,attic", 3)
    assert [kind for kind, _ in told] == ["hello", "detection", "detection"]
    deadline = time.monotonic() + 10
    while told[-1][1] not in daemon.detections:  # which come by another way
        assert time.monotonic() < deadline, daemon.detections
        time.sleep(0.05)
    first = daemon.detections.index(told[1][1])
    assert [event for _, event in told[1:]] == daemon.detections[first : first + 2]
    scores = server_sent(daemon.address, "?types=&scores=1", 3)
    assert [kind for kind, _ in scores] == ["hello", "scores", "scores"]
    assert set(scores[1][1]["thresholds"]) == set(scores[1][1]["scores"])


@pytest.mark.parametrize(
    "query",
    [
        "?types=wombat",
        "?types=wombat&types=detection",
        "?wombat=1",
        "?streams=&scores=0&x=",
        "?id=1&id=2",
        "?scores=no",
    ],
)
def test_a_wrong_wish_is_refused(daemon, query):
    status, text = ask(daemon.address, f"/events{query}")
    assert status == 400 and "\n" in text, text


def test_commands_are_those_of_the_socket(daemon):
    status, answer = order(daemon.address, command="status", id="a")
    assert status == 200 and answer["id"] == "a" and answer["status"]["streams"][0]["stream"] == "kitchen"
    assert answer["v"] == 1 and answer["time"]
    assert order(daemon.address, command="mute", streams=["kitchen"])[0] == 200
    assert daemon.wait_for("mute")["muted"] is True
    status, answer = order(daemon.address, command="mute", streams=["attic"])
    assert status == 400 and "there is no stream 'attic'" in answer["error"]
    assert order(daemon.address, command="reload")[1]["ok"] is True
    assert order(daemon.address, command="dance")[0] == 400
    assert order(daemon.address, command="subscribe")[0] == 400
    assert ask(daemon.address, "/command", b"x" * 100_000, Content_Type="application/json")[0] == 413
    assert json.loads(ask(daemon.address, "/status")[1])["streams"][0]["muted"] is True


def test_clips_for_scripts(environment, tmp_path):
    settings = ("--set", f"streams=[{{source: file, path: {DEMO}}}]", "--set", f"sinks.clips.folder={tmp_path}/clips")
    with Running(*settings, *serving(), environment=environment) as daemon:
        address = address_of(daemon)
        daemon.wait_for("detection")
        while not (found := json.loads(ask(address, "/clips")[1]))["clips"]:
            time.sleep(0.05)
        [clip] = found["clips"]
        assert (clip["stream"], clip["keyword"], clip["told"]) == ("file", "stop", True)
        assert found["words"][-2:] == ["go", "_unknown_"]
        with urllib.request.urlopen(f"http://{address}/clips/{clip['clip']}") as answer:
            assert answer.headers["Content-Type"] == "audio/wav"
            assert answer.read() == (tmp_path / "clips" / clip["clip"]).read_bytes()
        for path in ("heard", "heard/stop/mic.wav", "..%2F..%2Fetc%2Fpasswd", f"sorted/../{clip['clip']}"):
            assert ask(address, f"/clips/{path}")[0] == 404
        for said, status in (
            ({"clip": clip["clip"], "word": "lamp"}, 400),
            ({"clip": clip["clip"]}, 400),
            ({"clip": "heard/stop/x.wav", "word": "stop"}, 404),
            ({"clip": clip["clip"], "word": "stop"}, 200),
            ({"clip": clip["clip"], "word": "stop"}, 404),
        ):
            assert ask(address, "/clips", json.dumps(said).encode(), Content_Type="application/json")[0] == status, said
        assert ask(address, "/clips", b"clip=x&word=stop")[0] == 415  # as a page from elsewhere would send
    assert (tmp_path / "clips/sorted/stop" / Path(clip["clip"]).name).is_file()


def test_a_page_from_elsewhere_can_do_nothing(daemon):
    command = b'{"command": "mute"}'
    kind = {"Content_Type": "application/json"}
    assert ask(daemon.address, "/command", command, Content_Type="text/plain")[0] == 415
    assert ask(daemon.address, "/command", command, Origin="http://evil.example", **kind)[0] == 403
    assert ask(daemon.address, "/status", Host="evil.example:9170")[0] == 403
    assert ask(daemon.address, "/status", Host="127.0.0.1.evil.example")[0] == 403
    assert (
        ask(daemon.address, "/status", Host="[::1]:80")[0] == ask(daemon.address, "/status", Host="localhost")[0] == 200
    )
    assert ask(daemon.address, "/command", command, Origin=f"http://{daemon.address}", **kind)[0] == 200
    with urllib.request.urlopen(f"http://{daemon.address}/") as answer:
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "header",
    [
        b"Host: [::1",
        b"Host: localhost\r\nOrigin: http://[",
        b"Host: localhost\r\nAuthorization: Bearer \xff",
        b"Host: localhost\r\nCookie: kwsd=\xff",
        b"Host: localhost\r\nContent-Type: text/plain; charset=bogus",
        b"Host: localhost\r\nContent-Type: multipart/form-data",
        b"Host: local\x00host",
    ],
)
def test_headers_that_make_no_sense_are_refused_not_failed(daemon, header):
    host, _, port = daemon.address.rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /login HTTP/1.1\r\n" + header + b"\r\nConnection: close\r\nContent-Length: 2\r\n\r\na="
        )
        status = connection.makefile("rb").readline()
    assert b" 500 " not in status and status, status
    assert not [line for line in daemon.errors if "Traceback" in line]


def test_a_secret_that_no_text_can_be_is_wrong(environment, tmp_path):
    with guarded("open sesame", environment, tmp_path) as daemon:
        kind = "application/x-www-form-urlencoded; charset=unicode_escape"
        status, text = ask(daemon.address, "/login", rb"token=\ud800", Content_Type=kind)
        assert status == 401 and "That is not the secret" in text
        assert not [line for line in daemon.errors if "Traceback" in line]


@pytest.mark.parametrize(
    ("host", "answer"),
    [
        ("evil.example", b"403"),
        ("127.0.0.1.evil.example:9170", b"403"),
        ("evil.example[", b"403"),
        ("kwsd", b"200"),
        ("localhost:9170", b"200"),
        ("[::1]:9170", b"200"),
        ("127.0.0.1", b"200"),
    ],
)
def test_through_a_unix_socket_no_name_of_another_is_heard(host, answer, environment, tmp_path):
    path = tmp_path / "http.sock"
    with (
        Running("--source", "-", "--set", f"http.on=['unix:{path}']", environment=environment) as daemon,
        socket.socket(socket.AF_UNIX) as connection,
    ):
        daemon.wait_for_log("metrics and health on")
        connection.connect(str(path))
        connection.sendall(f"GET /status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        said = b"".join(iter(lambda: connection.recv(4096), b""))
        assert said.split()[1] == answer and (b"ask for 127.0.0.1, localhost or" in said) is (answer == b"403"), said


def test_a_form_in_an_encoding_there_is_not_is_refused(daemon):
    part = '--b\r\nContent-Disposition: form-data; name="token"\r\nContent-Transfer-Encoding: x\r\n\r\na\r\n--b--\r\n'
    status, _ = ask(daemon.address, "/login", part.encode(), Content_Type="multipart/form-data; boundary=b")
    assert status == 400 and not [line for line in daemon.errors if "Traceback" in line]


def test_who_asks_for_nothing_is_let_go_and_who_has_asked_may_take_time(daemon):
    host, _, port = daemon.address.rpartition(":")
    with (
        socket.create_connection((host, int(port))) as silent,
        socket.create_connection((host, int(port))) as slow,
        socket.create_connection((host, int(port))) as asking,
    ):
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: ")
        asking.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for connection in (silent, slow):
            connection.settimeout(HEADER_S + 5)
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
        asking.settimeout(0.5)
        assert b"200 OK" in asking.recv(1 << 16)
        with pytest.raises(TimeoutError):  # it is still there
            while asking.recv(1 << 16):
                pass


@pytest.mark.parametrize(("path", "kind"), [("/login", "x-www-form-urlencoded"), ("/command", "json")])
def test_who_never_sends_what_was_announced_is_let_go(path, kind, daemon):
    host, _, port = daemon.address.rpartition(":")
    fields = f"Host: localhost\r\nContent-Type: application/{kind}\r\nContent-Length: 9\r\n"
    head = f"POST {path} HTTP/1.1\r\n{fields}\r\n"
    with socket.create_connection((host, int(port)), timeout=HEADER_S + 5) as connection:
        connection.sendall(head.encode())
        said = b"".join(iter(lambda: connection.recv(4096), b""))
    assert said.startswith(b"HTTP/1.1 408 ") and b"send all of it within 5 s" in said


def test_half_a_second_request_is_waited_for_no_longer_than_the_first(daemon):
    host, _, port = daemon.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=HEADER_S + 5) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /heal")
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(4096):
                pass


def test_more_connections_than_may_be_are_closed_and_leave_descriptors_for_others(daemon):
    host, _, port = daemon.address.rpartition(":")
    idle = [socket.create_connection((host, int(port))) for _ in range(200)]
    time.sleep(0.5)
    assert len(list(open_descriptors(daemon))) < 170
    for connection in idle:
        connection.close()
    deadline = time.monotonic() + 10
    while True:
        try:
            assert ask(daemon.address, "/healthz")[0] == 200
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        else:
            break


def test_a_secret_that_was_replaced_counts_after_a_reload_and_a_refused_one_disturbs_nobody(environment, tmp_path):
    token, config = tmp_path / "token", tmp_path / "kwsd.yaml"
    token.write_text("old")
    token.chmod(0o600)
    text = (
        f"streams: [{{source: file, path: {DEMO}, name: a}}]\nhttp: {{on: ['tcp://127.0.0.1:0'], token_file: TOKEN}}\n"
    )
    config.write_text(text.replace("TOKEN", "token"))
    with Running("--config", str(config), environment=environment) as daemon:
        daemon.wait_for("ready")
        address = address_of(daemon)
        reading = http.client.HTTPConnection(address, timeout=30)
        reading.request("GET", "/events?types=reload", headers={"Authorization": "Bearer old"})
        answer = reading.getresponse()
        assert answer.readline() == b"event: hello\n"
        config.write_text(text.replace("TOKEN", "nosuch"))
        daemon.process.send_signal(signal.SIGHUP)
        assert daemon.wait_for("reload")["ok"] is False
        while answer.readline() != b"event: reload\n":
            pass
        reading.close()
        config.write_text(text.replace("TOKEN", "token"))
        token.write_text("new")
        daemon.process.send_signal(signal.SIGHUP)
        assert daemon.wait_for("reload")["ok"] is True
        address = address_of(daemon, 2)
        assert ask(address, "/status", Authorization="Bearer old")[0] == 401
        assert ask(address, "/status", Authorization="Bearer new")[0] == 200


def test_without_the_page_there_are_only_metrics_and_health(environment):
    stream = f"streams=[{{source: file, path: {DEMO}, name: kitchen}}]"
    options = ("--set", stream, *serving("--set", "http.page=false"))
    with Running(*options, environment=environment) as daemon:
        daemon.wait_for("ready")
        address = address_of(daemon)
        assert [ask(address, path)[0] for path in ("/", "/events", "/status", "/page.js", "/suggestion")] == [404] * 5
        assert order(address, command="mute")[0] == 404
        assert ask(address, "/metrics")[0] == ask(address, "/healthz")[0] == 200


def test_readers_that_go_are_forgotten_and_those_that_do_not_read_harm_nobody(daemon):
    host, _, port = daemon.address.rpartition(":")
    frozen = [socket.create_connection((host, int(port))) for _ in range(20)]
    for connection in frozen:
        connection.sendall(b"GET /events?scores=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    time.sleep(1)
    assert server_sent(daemon.address, "?types=detection", 2)[1][0] == "detection"
    for connection in frozen:
        connection.close()
    deadline = time.monotonic() + 10
    while len(list(open_descriptors(daemon))) > 20 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(list(open_descriptors(daemon))) <= 20


def open_descriptors(daemon):
    return Path(f"/proc/{daemon.process.pid}/fd").iterdir()


def test_beyond_this_machine_there_must_be_a_token(kwsd, tmp_path):
    config = tmp_path / "kwsd.yaml"
    config.write_text("http: {on: ['tcp://0.0.0.0:9170']}\n")
    kwsd("check", "--config", config).refused(CONFIG, "http.on.0", "name an http.token_file")
    config.write_text("http: {on: ['tcp://127.0.0.1:0'], token_file: none}\nstreams: [{source: pcm}]\n")
    kwsd("run", "--config", config).refused(CONFIG, "http.token_file", "no such file")
