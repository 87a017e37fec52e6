"""kwsd's own engine says what ONNX Runtime says, the same bits however samples come, and leaves what it does not
know to that."""

import ctypes
import importlib.util
import json
import math
import shutil
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from c_parts import build, walk_with_guards
from test_export import CLIPS, trained

from kwsd import onnx_file
from kwsd.artefact import METADATA, read_artefact, sealed
from kwsd.audio_format import WINDOW
from kwsd.engines import layout, load_spotter
from kwsd.errors import UNAVAILABLE, ConfigError, ModelError
from kwsd.recording import DEMO, read_recording
from kwsd.training.export import export

MODELS = Path(__file__).parent.parent / "models"
SOURCE = Path(layout.__file__).with_name("native.c")
SECOND = "commands, its second network"
SHIPPED = [SECOND, "commands-fast"]
# Of other sizes, most no multiple of a vector's.
UNTRAINED = ["dstcn-tiny", "dstcn-small", "stcn-small", "bcresnet-1", "bcresnet-1.5", "bcresnet-3"]
HOP = 1600
TOLERANCE = 1e-4  # in log-probability
LEAST = 1e-6  # below, a logarithm only magnifies rounding

pytestmark = pytest.mark.skipif(
    not shutil.which("cc"), reason="no C compiler: kwsd was installed without its own engine"
)


@pytest.fixture(scope="module")
def path_of(tmp_path_factory):
    """The artefact of a network that is shipped, or of one that has seen a little noise."""
    folder = tmp_path_factory.mktemp("models")
    for name in UNTRAINED:
        export(trained(name), folder / f"{name}.onnx", CLIPS)
    shutil.copy(MODELS / "commands-fast.onnx", folder)
    (folder / f"{SECOND}.onnx").write_bytes(read_artefact(MODELS / "commands.onnx").second.data)
    return lambda name: folder / f"{name}.onnx"


@pytest.fixture(params=[4, 8, 16])
def lanes(request):
    """Vectors of so many floats, if this machine has them."""
    library = ctypes.CDLL(importlib.util.find_spec(layout.LIBRARY).origin)
    library.native_lanes.argtypes = [ctypes.c_int64]
    if library.native_lanes(request.param) != request.param:
        pytest.skip(f"this machine has no vectors of {request.param} floats")
    yield request.param
    library.native_lanes(layout.MOST_LANES)


def log(posteriors):
    return np.log(np.maximum(posteriors, LEAST))


def rooms(streams, seconds=5.0):
    """Streams that hear the same recording from another place on: (streams, samples)."""
    speech, size = read_recording(DEMO), int(seconds * 16_000) // HOP * HOP
    return np.stack([speech[n * 21_000 : n * 21_000 + size] for n in range(streams)])


def hop_by_hop(spotter, heard, at_once=1):
    """Every hop's posteriors after the first window, so many in one call: (streams, hops, labels)."""
    states, ids = spotter.states(len(heard)), np.arange(len(heard))
    said = [spotter.begin(np.ascontiguousarray(heard[:, :WINDOW]), states, ids)[:, None]]
    for at in range(WINDOW, heard.shape[1], at_once * HOP):
        said.append(spotter.advance(np.ascontiguousarray(heard[:, at : at + at_once * HOP]), states, ids, at_once))
    return np.concatenate(said, 1)


# --- it says the same ---


@pytest.mark.parametrize("name", [*SHIPPED, *UNTRAINED])
def test_it_says_what_onnx_runtime_says(path_of, name, lanes):
    native, other = (load_spotter(path_of(name), "cpu", engine=engine) for engine in ("native", "onnxruntime"))
    assert (native.engine, other.engine) == ("native", "ONNX Runtime")
    heard = rooms(3)
    one, two = (log(hop_by_hop(spotter, heard)) for spotter in (native, other))
    assert name not in SHIPPED or np.ptp(one) > 5, "it must say something"
    np.testing.assert_allclose(one, two, rtol=0, atol=TOLERANCE)


def extremes():
    rng, time = np.random.default_rng(0), np.arange(WINDOW) / 16_000
    yield "silence", np.zeros(WINDOW)
    yield "full scale", np.ones(WINDOW)
    yield "a square wave", np.sign(np.sin(2 * np.pi * 440 * time) + 1e-9)
    yield "the highest tone", np.cos(np.pi * np.arange(WINDOW))
    yield "a click", np.eye(1, WINDOW, WINDOW // 2)[0]
    yield "noise", rng.standard_normal(WINDOW).clip(-1, 1)
    yield "hardly anything", rng.standard_normal(WINDOW) * 1e-6
    yield "what no number can be heard in", np.full(WINDOW, 1e-42)


@pytest.mark.parametrize("name", [*SHIPPED, "bcresnet-1"])
@pytest.mark.parametrize(("what", "window"), list(extremes()), ids=lambda x: x if isinstance(x, str) else "")
def test_it_says_the_same_of_the_extremes(path_of, name, what, window):
    windows = window.astype(np.float32)[None]
    one, two = (log(load_spotter(path_of(name), "cpu", engine=e).score(windows)) for e in ("native", "onnxruntime"))
    # Beside a tone at full scale the other bands have nothing but rounding.
    np.testing.assert_allclose(one, two, rtol=0, atol=10 * TOLERANCE)


def test_activations_beyond_what_an_exponential_can_be_are_those_of_onnx_runtime(tmp_path, lanes):
    checkpoint = trained("bcresnet-1")
    far = checkpoint.best_state
    for part in ("weight", "bias"):
        far[f"blocks.11.time.1.{part}"] *= 1000.0
    far["blocks.11.time.3.weight"] /= 1000.0
    export(checkpoint, tmp_path / "a.onnx", CLIPS)
    one, two = (
        log(load_spotter(tmp_path / "a.onnx", "cpu", engine=engine).score(rooms(3)[:, :WINDOW].copy()))
        for engine in ("native", "onnxruntime")
    )
    np.testing.assert_allclose(one, two, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", [*SHIPPED, *UNTRAINED])
def test_however_samples_come_it_says_the_same_to_the_last_bit(path_of, name, lanes):
    spotter, heard = load_spotter(path_of(name), "cpu", engine="native"), rooms(3)
    said = hop_by_hop(spotter, heard)
    hops = said.shape[1]
    windows = np.stack([heard[0, n * HOP : n * HOP + WINDOW] for n in range(hops)])
    assert np.array_equal(spotter.score(windows), said[0]), "whole windows, all in one call"
    assert np.array_equal(hop_by_hop(spotter, heard, at_once=2), said), "two hops in one call"
    assert np.array_equal(hop_by_hop(spotter, heard[1:2]), said[1:2]), "one stream alone"


def test_streams_are_those_that_are_named(path_of):
    spotter, heard = load_spotter(path_of("commands-fast"), "cpu", engine="native"), rooms(3)
    states, alone = spotter.states(7), hop_by_hop(spotter, heard)
    rows = np.array([6, 0, 3])
    said = [spotter.begin(np.ascontiguousarray(heard[:, :WINDOW]), states, rows)]
    before = states.copy()
    said.append(spotter.advance(np.ascontiguousarray(heard[:2, WINDOW : WINDOW + HOP]), states, rows[:2], 1)[:, 0])
    assert np.array_equal(said[0], alone[:, 0]) and np.array_equal(said[1], alone[:2, 1])
    assert np.array_equal(states[[1, 2, 3, 4, 5]], before[[1, 2, 3, 4, 5]])
    with pytest.raises(AssertionError, match="a stream without a state"):
        spotter.advance(np.zeros((1, HOP), np.float32), states, np.array([7]), 1)


@pytest.mark.parametrize("name", [*SHIPPED, "bcresnet-1"])
def test_what_is_no_number_is_forgotten_like_any_other_sound(path_of, name):
    spotter, window = load_spotter(path_of(name), "cpu", engine="native"), rooms(1)[:, :WINDOW]
    states, stream = spotter.states(1), np.zeros(1, np.int64)
    spotter.begin(np.full((1, WINDOW), np.nan, np.float32), states, stream)
    for at in range(0, WINDOW, HOP):
        said = spotter.advance(np.ascontiguousarray(window[:, at : at + HOP]), states, stream, 1)[:, 0]
    assert np.array_equal(said, spotter.score(np.ascontiguousarray(window)))


# --- memory ---

WALK = """
import itertools, pathlib, sys
import numpy as np
from kwsd.engines import layout, load_spotter
layout.LIBRARY = "with_guards"
for path, layout.MOST_LANES in itertools.product(sys.argv[1:], (4, 8, 16)):
    layout.functions.cache_clear()
    spotter = load_spotter(pathlib.Path(path), "cpu", engine="native")
    rng, step = np.random.default_rng(1), spotter.info.step
    for streams, hops, steps in ((1, 1, 1), (1, 1, 7), (1, 3, 5), (2, 1, 5), (5, 10, 5), (1, 1, 50)):
        states = spotter.states(streams)
        for _ in range(2):
            samples = rng.standard_normal((streams, hops * steps * step)).astype(np.float32)
            assert np.isfinite(spotter.advance(samples, states, np.arange(streams), hops)).all()
    spotter.score(rng.standard_normal((3, 16_000)).astype(np.float32))
print("walked")
"""


def test_the_compiler_has_nothing_to_say(tmp_path):
    strict = ("-O3", "-std=gnu11", "-Wall", "-Wextra", "-Wconversion", "-Wno-psabi")
    assert build(tmp_path, "native", [SOURCE], *strict) == ""


@pytest.mark.timeout(420)
def test_no_byte_is_touched_that_is_nobodys(tmp_path, path_of):
    walk_with_guards(tmp_path, [SOURCE], WALK, *(str(path_of(name)) for name in [*SHIPPED, *UNTRAINED]))


# --- what is not for it ---


def changed(path, out, change):
    """The artefact with another metadata or graph."""
    import onnx

    model = onnx.load(path)
    change(model)
    out.write_bytes(sealed(model.SerializeToString()))
    return out


def told(**said):
    """A change of what the artefact says of itself."""

    def change(model):
        (entry,) = (entry for entry in model.metadata_props if entry.key == METADATA)
        entry.value = json.dumps(json.loads(entry.value) | said)
        del model.metadata_props[:]
        model.metadata_props.append(entry)

    return change


def called(model, name):
    """The first weight whose name begins so: those of folded layers have numbers."""
    return next(weight for weight in model.graph.initializer if weight.name.startswith(name))


def without(name):
    def change(model):
        """The weight becomes an output of a node, as another exporter might have it."""
        from onnx import helper

        weight = called(model, name)
        model.graph.initializer.remove(weight)
        model.graph.node.insert(0, helper.make_node("Constant", [], [weight.name], value=weight))

    return change


def reshaped(name, *shape):
    def change(model):
        weight = called(model, name)
        weight.dims[:] = shape
        weight.raw_data = weight.raw_data[: 4 * math.prod(shape)]

    return change


def no_number(name):
    def change(model):
        weight = called(model, name)
        weight.raw_data = np.float32(np.nan).tobytes() + weight.raw_data[4:]

    return change


UNFIT = {
    "another network": ("dstcn-small", told(architecture="matchboxnet-1"), "it does not know matchboxnet-1"),
    "other frames": ("dstcn-small", told(features=None), "it knows dstcn-small on other log-mel frames"),
    "another step": ("commands-fast", told(step=160), "it knows stcn-base on other log-mel frames"),
    "a weight that is elsewhere": ("commands-fast", without("network.pool.weight"), "it misses network.pool.weight"),
    "a convolution that is elsewhere": ("dstcn-small", without("onnx::Conv_"), "it finds 17 weights of convolutions"),
    "a kernel of another size": (
        "commands-fast",
        reshaped("network.depthwise.0.weight", 192, 1, 1, 2),
        "it finds network.depthwise.0.weight to be [192, 1, 1, 2]",
    ),
    "a normalisation of another size": (
        "bcresnet-1",
        reshaped("body.network.blocks.0.frequency.4.norm.bias", 39),
        "it finds body.network.blocks.0.frequency.4.norm.bias to be [39]",
    ),
    "a weight of no size": (
        "dstcn-small",
        reshaped("body.network.last.0.weight"),
        "it misses body.network.last.0.weight",
    ),
    "weights of the other family": (
        "dstcn-small",
        told(architecture="stcn-base", step=320),
        "it misses network.stem.weight",
    ),
    "fewer layers than its family": (
        "dstcn-small",
        told(architecture="bcresnet-2"),
        "it finds 18 weights of convolutions",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_it_does_not_know_onnx_runtime_runs(tmp_path, path_of, case):
    name, change, reason = UNFIT[case]
    path = changed(path_of(name), tmp_path / "a.onnx", change)
    with pytest.raises(ConfigError) as refusal:
        load_spotter(path, "cpu", engine="native")
    assert str(refusal.value) == f"engine: native: not for {path}: {reason}; say auto"
    assert refusal.value.exit_code == UNAVAILABLE
    if "size" not in case and "step" not in case:  # which ONNX Runtime cannot run either
        assert load_spotter(path, "cpu").engine == "ONNX Runtime"


def test_weights_that_are_no_numbers_are_refused_and_not_taken_for_silence(tmp_path):
    path = changed(MODELS / "commands-fast.onnx", tmp_path / "a.onnx", no_number("network.pointwise.2.weight"))
    with pytest.raises(ConfigError, match=r"network\.pointwise\.2\.weight has what is no number; say auto$"):
        load_spotter(path, "cpu", engine="native")
    with pytest.raises(ModelError, match="its outputs are not log-probabilities"):
        load_spotter(path, "cpu")


def test_a_step_longer_than_a_window_is_refused_before_room_is_made_for_it(tmp_path):
    path = changed(MODELS / "commands-fast.onnx", tmp_path / "a.onnx", told(step=10**12))
    with pytest.raises(ModelError, match="cannot be advanced by 1000000000000 samples; export it again"):
        load_spotter(path, "cpu")


def test_a_normalisation_that_makes_no_numbers_is_refused_and_not_taken_for_silence(tmp_path, path_of):
    def change(model):
        variance = called(model, "body.network.blocks.0.frequency.4.norm.running_var")
        variance.raw_data = np.full(math.prod(variance.dims), -1.0, np.float32).tobytes()

    path = changed(path_of("bcresnet-1"), tmp_path / "a.onnx", change)
    with pytest.raises(ConfigError, match=r"what it makes of the normalisations is no number; say auto$"):
        load_spotter(path, "cpu", engine="native")
    with pytest.raises(ModelError, match="its outputs are not log-probabilities"):
        load_spotter(path, "cpu")


def test_check_says_so_before_a_daemon_starts(kwsd, tmp_path):
    path = changed(MODELS / "commands.onnx", tmp_path / "a.onnx", UNFIT["another network"][1])
    native = ["--set", "engine=native"]
    kwsd("check", "--model", path, *native).refused(
        UNAVAILABLE, f"not for {path}: it does not know matchboxnet-1; say auto"
    )
    assert kwsd("check", *native).code == 0


@pytest.mark.parametrize("name", ["kwsd.engines._nowhere", "json"])
def test_where_it_was_not_compiled_onnx_runtime_runs_all(monkeypatch, name):
    monkeypatch.setattr(layout, "LIBRARY", name)
    layout.functions.cache_clear()
    try:
        assert load_spotter(MODELS / "commands.onnx", "cpu").engine == "ONNX Runtime"
        with pytest.raises(ConfigError, match=r"install kwsd again; say auto$"):
            load_spotter(MODELS / "commands.onnx", "cpu", engine="native")
    finally:
        layout.functions.cache_clear()


def test_with_it_kwsd_hears_where_onnx_runtime_cannot_be_had(kwsd, tmp_path):
    (tmp_path / "onnxruntime.py").write_text("raise ModuleNotFoundError('no wheel for this machine')")
    without = {"PYTHONPATH": str(tmp_path)}
    heard = kwsd("replay", str(DEMO), more=without)
    assert heard.code == 0 and heard.out.count('"type":"detection"') == 10
    kwsd("replay", str(DEMO), "--set", "engine=onnxruntime", more=without).refused(
        UNAVAILABLE, "commands.onnx: ONNX Runtime, which would run it, cannot be loaded (no wheel for this machine)"
    )


def test_without_a_compiler_kwsd_installs_all_the_same(tmp_path):
    pytest.importorskip("setuptools")
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path)],
        capture_output=True, check=False, text=True, timeout=60, cwd=SOURCE.parent.parent.parent,
        env={"CC": "/nowhere/cc", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert (done.returncode, list(tmp_path.rglob("*.so"))) == (0, [])
    assert 'extension "kwsd.engines._native" failed' in done.stdout + done.stderr


def test_a_source_distribution_has_all_that_is_compiled(tmp_path):
    pytest.importorskip("setuptools")
    top = SOURCE.parent.parent.parent
    subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path, "sdist", "--dist-dir", tmp_path],
        check=True, capture_output=True, timeout=60, cwd=top,
    )  # fmt: skip
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    parts = {str(path.relative_to(top)) for path in (top / "kwsd").rglob("*.[ch]")}
    assert len(parts) >= 8
    assert parts <= names


def test_one_that_was_compiled_of_another_version_is_not_called(monkeypatch):
    monkeypatch.setattr(layout, "INTERFACE", layout.INTERFACE + 1)
    layout.functions.cache_clear()
    try:
        with pytest.raises(layout.UnfitError, match="for another version; install kwsd again"):
            layout.functions("stcn")
    finally:
        layout.functions.cache_clear()


@pytest.mark.parametrize("engine", ["native", "onnxruntime"])
def test_torchscript_is_for_torch(engine):
    with pytest.raises(ConfigError, match=r"engine: .*commands\.pt is TorchScript, which torch runs; say auto"):
        load_spotter(MODELS / "commands.pt", "cpu", engine=engine)


# --- what is read of the file ---


@pytest.mark.parametrize("name", [*SHIPPED, *UNTRAINED])
def test_weights_and_metadata_are_those_the_library_reads(path_of, name):
    import onnx

    model, content = onnx.load(path_of(name)), path_of(name).read_bytes()
    expected = {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer if w.data_type == 1}
    found = onnx_file.weights(content)
    assert list(found) == list(expected)
    assert all(np.array_equal(found[key], expected[key]) for key in expected)
    assert onnx_file.metadata(content) == {e.key.encode(): e.value.encode() for e in model.metadata_props}


def test_of_bytes_that_are_no_such_message_nothing_else_is_raised(path_of):
    content, rng = path_of("dstcn-tiny").read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        broken = bytearray(content[: rng.integers(len(content))])
        for at in rng.integers(0, len(broken), 3).tolist() if broken else ():
            broken[at] = rng.integers(256)
        for read in (onnx_file.metadata, onnx_file.weights):
            try:
                read(bytes(broken))
            except ValueError:
                refused += 1
    assert refused > 100


def test_a_weight_of_millions_of_axes_or_fields_is_refused_or_read_in_no_time_and_no_memory():
    """Their product has as many digits as one has patience."""
    largest = b"\xff" * 8 + b"\x7f"
    axes = onnx_field(1, largest * 200_000)
    with pytest.raises(ValueError, match="a weight of more than 8 axes"):
        onnx_file.weights(onnx_field(7, onnx_field(5, axes)))
    tracemalloc.start()
    assert onnx_file.weights(onnx_field(7, onnx_field(5, onnx_field(15, b"") * 100_000))) == {}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def onnx_field(number, content):
    """A field of a message, of so many bytes."""
    size, written = len(content), bytearray([number << 3 | 2])
    while size > 0x7F:
        written.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes(written) + bytes([size]) + content
