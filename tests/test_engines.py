"""Whatever engine runs it, a shipped model says the same."""

import errno
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from kwsd import engines
from kwsd.artefact import read_info
from kwsd.audio_format import WINDOW
from kwsd.cascade import stages
from kwsd.engines import load_spotter
from kwsd.errors import CONFIG, UNAVAILABLE, ModelError
from kwsd.recording import DEMO, read_recording

MODELS = Path(__file__).parent.parent / "models"
BOTH = [path.stem for path in sorted(MODELS.glob("*.onnx")) if path.with_suffix(".pt").exists()]
HOP = 1600
TOLERANCE = 1e-4  # in log-probability
LEAST = 1e-6  # below, a logarithm only magnifies rounding


def by_windows(spotter, speech, starts):
    return spotter.score(np.stack([speech[start : start + WINDOW] for start in starts]))


def by_hops(spotter, speech, streams, at_once=1):
    """Every stream from another place, so many hops in one call: (streams, hops, labels)."""
    rooms = np.stack([speech[n * 21_000 : n * 21_000 + WINDOW + 30 * HOP] for n in range(streams)])
    states, ids = spotter.states(streams), np.arange(streams)
    said = [spotter.begin(np.ascontiguousarray(rooms[:, :WINDOW]), states, ids)[:, None]]
    for at in range(WINDOW, rooms.shape[1], at_once * HOP):
        new = np.ascontiguousarray(rooms[:, at : at + at_once * HOP])
        said.append(spotter.advance(new, states, ids, at_once))
    return np.concatenate(said, 1)


def test_there_is_a_model_in_both_forms():
    assert "commands" in BOTH


@pytest.mark.parametrize("name", BOTH)
def test_both_forms_of_a_model_are_the_same_weights_and_say_the_same(name):
    paths = [MODELS / f"{name}.onnx", MODELS / f"{name}.pt"]
    one, other = (read_info(path) for path in paths)
    assert (one.weights_sha256, one.labels, one.thresholds, one.step) == (
        other.weights_sha256, other.labels, other.thresholds, other.step
    )  # fmt: skip
    speech = read_recording(DEMO)
    for forms in zip(*(stages(load_spotter(path, "cpu")) for path in paths), strict=True):
        for what in (
            lambda spotter: by_windows(spotter, speech, range(0, len(speech) - WINDOW, 5_000)),
            lambda spotter: by_hops(spotter, speech, 1),
            lambda spotter: by_hops(spotter, speech, 9),
            lambda spotter: by_hops(spotter, speech, 9, at_once=10),
        ):
            one, other = (np.log(np.maximum(what(spotter), LEAST)) for spotter in forms)
            assert np.ptp(one) > 5, "it must say something"
            np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("path", sorted(MODELS.glob("commands*.[op][nt]*")), ids=lambda path: path.name)
@pytest.mark.parametrize("streams", [1, 5])
def test_ten_hops_at_once_say_the_same_as_one_after_the_other(path, streams):
    speech = read_recording(DEMO)
    for spotter in stages(load_spotter(path, "cpu")):
        one, ten = (np.log(np.maximum(by_hops(spotter, speech, streams, at_once=n), LEAST)) for n in (1, 10))
        np.testing.assert_allclose(one, ten, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("raised", "told", "code"),
    [
        (MemoryError(), MemoryError, None),
        (OSError(errno.EMFILE, "Too many open files"), OSError, None),
        (ModelError("a: inference failed: CUDA out of memory", exit_code=UNAVAILABLE), ModelError, UNAVAILABLE),
        (ModelError("a: inference failed: Failed to allocate memory", exit_code=UNAVAILABLE), ModelError, UNAVAILABLE),
        (ModelError("a: inference failed: a shape", exit_code=UNAVAILABLE), ModelError, CONFIG),
        (AttributeError("no such thing"), ModelError, CONFIG),
    ],
)
def test_what_the_machine_lacks_for_now_is_not_blamed_on_the_model(raised, told, code, monkeypatch):
    def fail(_):
        raise raised

    monkeypatch.setattr(engines, "try_out", fail)
    with pytest.raises(told) as failure:
        load_spotter(MODELS / "commands-fast.onnx", "cpu")
    assert code is None or failure.value.exit_code == code


@pytest.mark.parametrize(
    "said", [MemoryError(), RuntimeError("Failed to allocate memory for requested buffer of size 6")]
)
def test_a_session_for_which_memory_does_not_suffice_is_not_blamed_on_the_model(said, monkeypatch):
    def fail(*_, **__):
        raise said

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(ModelError, match="memory is full; free some") as failure:
        load_spotter(MODELS / "commands-fast.onnx", "cpu", engine="onnxruntime")
    assert failure.value.exit_code == UNAVAILABLE


def test_a_torch_that_cannot_be_loaded_is_not_blamed_on_the_model(kwsd, tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so: cannot open shared object file')\n")
    result = kwsd("replay", "--model", MODELS / "simplenet.pt", DEMO, more={"PYTHONPATH": str(tmp_path)})
    result.refused(UNAVAILABLE, "simplenet.pt: torch, which would run it, cannot be loaded (libcudart.so: cannot open")
