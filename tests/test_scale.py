"""The search finds the largest number that is carried, and what it measures is real."""

import json
import os
import socket
import tempfile

import msgspec
import pytest

from kwsd import peers, scale
from kwsd.config import load_config
from kwsd.engines import load_spotter
from kwsd.errors import UNAVAILABLE, USAGE, KwsdError
from kwsd.scale import NEAR, Point, best, draw, engine, largest, on_one_core, through_listener

HOP_MS = 100.0


@pytest.fixture(scope="module")
def config():
    return load_config(None, environment={})


def point(streams, most, **changed):
    figures = {
        "streams": streams,
        "usual_lag_ms": 5,
        "worst_lag_ms": 20 if streams <= most else 900,
        "core_percent": 50.0,
        "windows_per_s": streams * 10.0,
        "skipped": 0,
    }
    return Point(**figures | changed)


@pytest.mark.parametrize("most", [0, 1, 30, 49, 50, 51, 400, 1234, 9999])
def test_the_search_comes_near_the_largest_number_from_below(most):
    told = []
    points = largest(lambda streams: point(streams, most), HOP_MS, told.append)
    found = best(points, HOP_MS)
    assert found <= most and most - found <= max(1, 2 * NEAR * most)
    assert [p.streams for p in points] == sorted({p.streams for p in told})
    assert len(told) < 20


@pytest.mark.parametrize(("most", "found"), [(4095, range(3900, 4096)), (4096, [4096]), (10**6, [4096])])
def test_no_more_are_tried_than_there_may_be(most, found):
    told = []
    points = largest(lambda streams: point(streams, most), HOP_MS, told.append, 4096)
    assert best(points, HOP_MS) in found
    assert max(p.streams for p in told) == 4096


@pytest.mark.parametrize(
    ("changed", "carried"),
    [
        ({}, True),
        ({"worst_lag_ms": 199}, True),
        ({"worst_lag_ms": 200}, False),
        ({"skipped": 1}, False),
        ({"windows_per_s": 900.0}, False),  # of a thousand: it looks in time because the rest never came
    ],
)
def test_carried_means_in_time_and_all_of_it(changed, carried):
    assert point(100, 100, **changed).carried(HOP_MS) == carried


def test_the_engine_scores_every_window_of_every_stream_in_time(config):
    spotter = load_spotter(config.model_path, "cpu")
    before = os.sched_getaffinity(0)
    with on_one_core() as others:
        assert len(os.sched_getaffinity(0)) == 1 and others
        measured = engine(config, spotter, 23, 2.0)
    assert os.sched_getaffinity(0) == before
    assert measured.streams == 23 and measured.skipped == 0
    assert 180 < measured.windows_per_s < 240, "nearly the 230 there are, on a machine that does other things as well"
    assert 0 < measured.core_percent <= 105


def test_through_the_listener_too(config, monkeypatch):
    monkeypatch.setenv("KWSD_MODEL", "nowhere")  # the config has it all
    measured = through_listener(config, sorted(os.sched_getaffinity(0))[-1:], 7, 3.0)
    assert measured.streams == 7 and measured.skipped == 0
    assert measured.windows_per_s == pytest.approx(70, rel=0.15)
    assert measured.core_percent > 0


def test_satellites_that_do_not_come_are_not_waited_for_for_ever(config, monkeypatch):
    monkeypatch.setattr(scale, "COMING_S", 2.0)
    monkeypatch.setattr(scale, "_speak", lambda *_: None)
    with pytest.raises(KwsdError, match="of 3 satellites 0 came") as refused:
        through_listener(config, sorted(os.sched_getaffinity(0))[-1:], 3, 1.0)
    assert refused.value.exit_code == UNAVAILABLE


def test_why_the_daemon_does_not_start_is_told(config, tmp_path, monkeypatch):
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(KwsdError, match=r"did not start: .*listen\.on: .* is too long for a socket"):
        through_listener(config, sorted(os.sched_getaffinity(0))[-1:], 3, 1.0)


def test_the_picture_is_drawn(tmp_path):
    points = {what: [scale._as_builtins(point(n, 100), what) for n in (50, 100, 200)] for what in scale.LAGS}
    figures = {"hop_ms": HOP_MS, **points}
    draw(figures, tmp_path / "scale.png")
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")


def test_each_search_has_the_names_of_its_own_lags():
    rest = {"streams": 7, "core_percent": 50.0, "windows_per_s": 70.0, "skipped": 0}
    assert scale._as_builtins(point(7, 7), "engine") == rest | {"lag_p50_ms": 5, "lag_p99_ms": 20}
    assert scale._as_builtins(point(7, 7), "listener") == rest | {"median_lag_p99_ms": 5, "highest_lag_p99_ms": 20}


def test_a_picture_of_nothing_is_refused(kwsd, tmp_path):
    kwsd("bench", "--picture", tmp_path / "x.png").refused(USAGE, "--picture: only --scale has something to draw")


@pytest.mark.parametrize("seconds", ["0", "-1", "nan"])
def test_no_time_at_all_is_refused(kwsd, seconds):
    kwsd("bench", f"--seconds={seconds}").refused(USAGE, "--seconds", "more than 0")


# --- peers ---


def test_without_peers_there_is_nothing_to_compare_with(kwsd, monkeypatch):
    if any(peers.importlib.util.find_spec(module) for name, (module, _) in peers.PEERS.items() if name != "kwsd"):
        pytest.skip("peers are installed here; their figures are for kwsd bench --peers by hand")
    kwsd("bench", "--peers").refused(UNAVAILABLE, "none is installed; pip install 'kwsd[bench]'")


def test_a_process_of_its_own_tells_what_it_spent(config, tmp_path):
    pcm = tmp_path / "silence.s16"
    pcm.write_bytes(bytes(2 * 16_000 * 3))
    spent = peers._run("kwsd", pcm, "fast", config)
    assert 0 < spent.start_s < 30 and 0 < spent.cpu_percent < 100 and 20 < spent.rss_mib < 300
    assert json.dumps(peers.as_builtins({"kwsd": {"fast": [spent]}}))
    assert "kwsd" in peers.report({"kwsd": {"fast": [spent], "realtime": [spent]}})


def test_kwsd_is_measured_with_the_whole_configuration(config, tmp_path):
    with pytest.raises(peers.KwsdError, match=r"kwsd failed: .*keywords\.wombat: the model does not know it"):
        peers._run("kwsd", tmp_path / "none.s16", "fast", msgspec.structs.replace(config, keywords=("wombat",)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--peers", "--scale"), "--scale: is not for --peers; leave it out"),
        (("--peers", "--streams", "1"), "--streams: is not for --peers"),
        (("--peers", "--seconds", "5"), "--seconds: is not for --peers"),
        (("--scale", "--streams", "10"), "--streams: --scale seeks how many; leave it out"),
    ],
)
def test_what_would_do_nothing_is_refused(kwsd, options, words):
    kwsd("bench", *options).refused(USAGE, words)


def test_one_that_cannot_be_run_is_named_with_its_reason(config, tmp_path):
    with pytest.raises(peers.KwsdError, match=r"bench --peers: kwsd failed: .*No such file"):
        peers._run("kwsd", tmp_path / "nowhere.s16", "fast", config)


@pytest.mark.parametrize("place", ["in a file", "in the environment"])
def test_a_daemon_that_is_measured_switches_no_lamp_and_opens_no_door(place, kwsd, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        at = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        settings = {
            "hooks": f"[{{shell: touch {tmp_path}/lamp, events: [ready]}}]",
            "sinks": "{stdout: false, mqtt: {broker: 'mqtt://127.0.0.1:9'}}",
            "http": f"{{on: ['{at}']}}",
            "wyoming": f"{{on: ['unix:{tmp_path}/w']}}",
            "listen": f"{{on: ['unix:{tmp_path}/in']}}",
        }
        in_file = place == "in a file"
        (tmp_path / "kwsd.yaml").write_text("".join(f"{key}: {settings[key]}\n" for key in settings if in_file))
        more = {} if in_file else {f"KWSD_{key.upper()}": value for key, value in settings.items()}
        result = kwsd("bench", "--config", "kwsd.yaml", "--seconds", "1", "--json", more=more, timeout=100)
    assert result.code == 0, result.err
    assert json.loads(result.out)["daemon"]["ready_s"] > 0
    assert [path.name for path in tmp_path.iterdir() if path.name in ("lamp", "w", "in")] == []
