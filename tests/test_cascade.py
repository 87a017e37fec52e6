"""A second network is asked where the first suspects a keyword, and nowhere else; both lie in one file."""

import base64
import time

import msgspec
import numpy as np
import onnx
import pytest
import torch
from test_export import CLIPS, MODELS, WRITERS, either_format, trained

from kwsd import doctor
from kwsd.artefact import SECOND, ArtefactInfo, read_artefact, read_info, sealed
from kwsd.audio_format import WINDOW
from kwsd.cascade import SECOND_SHARE, SUSPECTED, Answers, Cascade
from kwsd.cli import dispatch
from kwsd.config import load_config
from kwsd.engines import load_spotter
from kwsd.engines.native import NativeSpotter
from kwsd.errors import ConfigError, ModelError
from kwsd.networks import NETWORKS
from kwsd.recording import DEMO, read_recording
from kwsd.ring import RingBuffer
from kwsd.scoring import CascadeScorer, HopScorer, WindowScorer, make_scorer
from kwsd.training import export as exporting
from kwsd.training.begin import begin_with, origin
from kwsd.training.export import export
from kwsd.training.labels import COMMANDS
from kwsd.window import Due

LABELS = ("yes", "no", "_unknown_", "_silence_")
SAYS_YES = np.array([0.9, 0.05, 0.03, 0.02], np.float32)
UNSURE = np.array([0.1, SUSPECTED, 0.7 - SUSPECTED, 0.2], np.float32)
SAYS_NOTHING = np.array([0.15, 0.05, 0.3, 0.5], np.float32)


class Says:
    """Finds what it says of a window by the window's first sample."""

    engine = "a table"

    def __init__(self, *posteriors, labels=LABELS):
        self.info = ArtefactInfo(
            format=1, architecture="table", labels=labels, sample_rate=16_000, window=WINDOW, features=None,
            thresholds={}, figures=(), data="", licence="", weights_sha256="0" * 64,
        )  # fmt: skip
        self.posteriors, self.asked = np.stack(posteriors), []

    def score(self, windows):
        rows = windows[:, 0].astype(int)
        self.asked += rows.tolist()
        return self.posteriors[rows]


def windows(n):
    return np.repeat(np.arange(n, dtype=np.float32)[:, None], WINDOW, 1)


# --- what it decides ---


def test_the_second_is_asked_only_where_the_first_suspects_a_keyword():
    first, second = Says(SAYS_YES, SAYS_NOTHING, UNSURE), Says(SAYS_NOTHING, SAYS_YES, SAYS_YES)
    cascade = Cascade(first, second)
    posteriors = cascade.score(windows(3))
    assert second.asked == [0, 2]
    assert (cascade.heard, cascade.asked) == (3, 2)
    np.testing.assert_array_equal(posteriors[1], SAYS_NOTHING)
    for row, ours, theirs in ((0, SAYS_YES, SAYS_NOTHING), (2, UNSURE, SAYS_YES)):
        np.testing.assert_allclose(posteriors[row], (1 - SECOND_SHARE) * ours + SECOND_SHARE * theirs, rtol=1e-6)
    np.testing.assert_allclose(posteriors.sum(1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(first.posteriors[0], SAYS_YES, "what the first said is not written over")


def test_where_the_first_suspects_nothing_the_second_is_left_alone():
    second = Says(SAYS_YES)
    np.testing.assert_array_equal(Cascade(Says(SAYS_NOTHING), second).score(windows(1)), SAYS_NOTHING[None])
    assert second.asked == []


def test_the_second_may_have_its_labels_in_another_order():
    order = [2, 0, 3, 1]
    second = Says(SAYS_YES[order], labels=tuple(LABELS[i] for i in order))
    np.testing.assert_allclose(Cascade(Says(SAYS_YES), second).score(windows(1))[0], SAYS_YES, rtol=1e-6)


def test_doctor_counts_what_both_networks_take(monkeypatch):
    class Slow(Says):
        def score(self, windows):
            time.sleep(0.06)
            return super().score(windows)

    labels = (*COMMANDS, "_unknown_", "_silence_")
    quick, slow = (kind(np.eye(12, dtype=np.float32)[11], labels=labels) for kind in (Says, Slow))
    monkeypatch.setattr(doctor, "make_spotter", lambda *_: Cascade(quick, slow))
    [finding] = doctor._model(load_config(None, environment={}))
    assert finding.state == doctor.WARN, finding


# --- in a stream ---


@pytest.fixture(scope="module", params=["commands.onnx", "commands.pt"])
def shipped(request):
    return load_spotter(MODELS / request.param, "cpu")


def listened(spotter, scorer, tape, hop=1600):
    """Posteriors (windows, labels) of a recording in two streams at once, of which one is said."""
    ring = RingBuffer(2, 4 * WINDOW)
    found = []
    for end in range(hop, tape.size, hop):
        ring.write(0, tape[end - hop : end])
        ring.write(1, np.zeros(hop, np.float32))
        if end < WINDOW:
            continue
        due = Due(np.arange(2), np.full(2, end), np.zeros(2, np.int64), 2)
        scored = scorer.score(ring, due)
        assert scored.streams.tolist() == [0, 1] and not scored.skipped.any()
        found.append(scored.posteriors[0])
    return np.stack(found)


def by_the_book(cascade, windows, hop=1600):
    """Posteriors of consecutive windows, and of how many the second was asked."""
    ours = cascade.first.score(np.ascontiguousarray(windows))
    theirs = cascade.second.score(np.ascontiguousarray(windows))  # the labels are in the same order
    after, asked, agreed, answer, word = ours.copy(), 0, [], None, None
    for i, (first, second) in enumerate(zip(ours, theirs, strict=True)):
        suspected = [k for k in cascade.keywords if first[k] >= 0.2]
        if not suspected:
            agreed = []
            continue
        if not (len(agreed) * hop >= 3200 and suspected == [word] and first[word] >= 0.4):
            asked += 1
            answer, best = second, max(cascade.keywords, key=second.__getitem__)
            agree = second[best] >= 0.8 and first[best] >= 0.4
            agreed = (agreed if best == word else []) if agree else []
            word = best
            agreed = [*agreed, i] if agree else []
        else:
            agreed = [*agreed, i]
        after[i] += SECOND_SHARE * (answer - first)
    return after, asked


def consecutive(tape, hop=1600):
    return np.lib.stride_tricks.sliding_window_view(tape, WINDOW)[::hop]


def test_a_stream_is_told_by_both_networks_as_its_windows_are_and_an_answer_holds_while_the_word_lasts(shipped):
    tape, scorer = read_recording(DEMO), make_scorer(shipped, 2, 1600)
    assert isinstance(shipped, Cascade), "the default model is one"
    assert isinstance(scorer, CascadeScorer) and isinstance(scorer._first, HopScorer)
    before = shipped.asked
    heard = listened(shipped, scorer, tape)
    really = shipped.asked - before
    windows = np.ascontiguousarray(consecutive(tape)[: len(heard)])
    expected, asked = by_the_book(shipped, windows)
    np.testing.assert_allclose(heard, expected, atol=1e-4)
    assert really == asked
    suspects = len(shipped.suspects(shipped.first.score(windows)))
    assert suspects < len(windows) / 2, "of most windows nobody is asked"
    assert 20 < asked < 0.6 * suspects, "half of the questions are spared"


PLAIN = np.array([0.95, 0.02, 0.02, 0.01], np.float32)
FADING = np.array([0.35, 0.1, 0.35, 0.2], np.float32)
BOTH = np.array([0.5, 0.3, 0.1, 0.1], np.float32)
NO = np.array([0.1, 0.9, 0.0, 0.0], np.float32)
HELD = {
    "a word that lasts": ("PPPPPP", "PPPPPP", "aa...."),
    "one that fades is asked about again": ("PPPFP", "PPPFP", "aa.aa"),
    "as is one that may be another": ("PPPBP", "PPPPP", "aa.a."),
    "and another": ("PPPNNNN", "PPPNNNN", "aa.aa.."),
    "the second must be sure": ("PPPPP", "FFPPP", "aaaa."),
    "and hear the same": ("PPPP", "NNNN", "aaaa"),
    "silence ends it": ("PPP_PPP", "PPP_PPP", "aa. aa."),
    "so does a gap": ("PPP|PPP", "PPP|PPP", "aa.|aa."),
}


@pytest.mark.parametrize(("ours", "theirs", "asked"), HELD.values(), ids=HELD.keys())
@pytest.mark.parametrize("hop", [1600, 3200])
def test_the_second_is_asked(ours, theirs, asked, hop):
    """`a` for every window it must be asked about and `.` for each about which its last answer holds."""
    kinds = {"P": PLAIN, "F": FADING, "B": BOTH, "N": NO, "_": SAYS_NOTHING}
    first, second = (Says(*(kinds[c] for c in said if c != "|")) for said in (ours, theirs))
    cascade = Cascade(first, second)
    answers, end, told = Answers(cascade, 2, hop), WINDOW, ""
    windows = iter(range(len(ours)))
    for step in ours:
        end += hop
        if step == "|":
            told += "|"
            continue
        at = next(windows)
        said = first.posteriors[at].tolist()
        if not len(cascade.suspects(first.posteriors[at : at + 1])):
            told += " "
        elif answers.hold(1, end, said):
            told += "."
        else:
            told += "a"
            answers.note(1, end, said, second.posteriors[at])
            np.testing.assert_array_equal(answers.of(np.array([1]))[0], second.posteriors[at])
    assert told == (asked if hop == 1600 else asked.replace("aa.", "a.."))


@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_however_many_windows_of_a_stream_are_scored_at_once_it_says_the_same(shipped, at_once):
    """As in a quiet room, and where scoring is late; of some windows the second is asked, of some between not."""
    tape, hop, streams = read_recording(DEMO)[: 8 * WINDOW], 1600, 3
    ring = RingBuffer(streams, 10 * WINDOW)
    for stream in range(streams):
        ring.write(stream, tape[stream * 5 * hop :])
    scorer, found = make_scorer(shipped, streams, hop), {}
    ends = np.arange(WINDOW, 6 * WINDOW, hop)
    for some in np.split(ends, range(at_once, len(ends), at_once)):
        due = Due(
            np.tile(np.arange(streams), len(some)), np.repeat(some, streams), np.zeros(streams, np.int64), streams
        )
        scored = scorer.score(ring, due)
        assert len(scored) == len(due) and not scored.skipped.any()
        rows = zip(scored.streams.tolist(), scored.ends.tolist(), scored.posteriors, strict=True)
        found |= {(stream, end): posteriors for stream, end, posteriors in rows}
    for stream in range(streams):
        heard = np.lib.stride_tricks.sliding_window_view(tape[stream * 5 * hop :], WINDOW)[ends - WINDOW]
        expected, _ = by_the_book(shipped, heard)
        np.testing.assert_allclose([found[stream, end] for end in ends.tolist()], expected, atol=1e-4)


def test_a_window_that_is_overwritten_before_the_second_has_it_is_counted_as_lost():
    cascade = Cascade(Says(SAYS_YES, SAYS_YES, SAYS_NOTHING), Says(SAYS_YES, SAYS_YES, SAYS_YES))
    ring = RingBuffer(3, 2 * WINDOW)
    for stream in range(3):
        ring.write(stream, np.full(WINDOW, stream, np.float32))

    class ThenOverwritten(WindowScorer):
        def score(self, ring, due):
            scored = super().score(ring, due)
            ring.write(1, np.zeros(2 * WINDOW, np.float32))
            return scored

    due = Due(np.arange(3), np.full(3, WINDOW), np.array([0, 2, 0]), 3)
    answers = Answers(cascade, 3, 1600)
    scorer = CascadeScorer(cascade, ThenOverwritten(cascade.first), WindowScorer(cascade.second), answers)
    scored = scorer.score(ring, due)
    assert scored.streams.tolist() == [0, 2] and scored.skipped.tolist() == [0, 3, 0]
    np.testing.assert_allclose(scored.posteriors, [SAYS_YES, SAYS_NOTHING], rtol=1e-6)


# --- in one file ---


def both(tmp_path, suffix):
    first, second = trained(), trained("simplenet", labels=("_silence_", "yes", "no"), seed=1)
    info = export(first, tmp_path / f"both{suffix}", CLIPS, second=second)
    return first, second, info, tmp_path / f"both{suffix}"


@either_format
def test_one_file_has_both_networks_and_each_is_the_one_that_was_trained(tmp_path, suffix):
    first, second, info, path = both(tmp_path, suffix)
    spotter = load_spotter(path, "cpu")
    assert isinstance(spotter, Cascade)
    assert spotter.info.architecture == "dstcn-tiny and simplenet"
    for stage, checkpoint in ((spotter.first, first), (spotter.second, second)):
        with torch.inference_mode():
            eager = checkpoint.network()(CLIPS).exp().numpy()
        np.testing.assert_allclose(stage.score(CLIPS.numpy()), eager, atol=1e-5)
    assert read_info(path) == info


def test_another_second_makes_it_another_model_and_another_kind_of_file_does_not(tmp_path):
    _, _, of_onnx, _ = both(tmp_path, ".onnx")
    _, _, of_torchscript, _ = both(tmp_path, ".pt")
    alone = export(trained(), tmp_path / "alone.onnx", CLIPS)
    other = export(trained(), tmp_path / "other.onnx", CLIPS, second=trained(seed=2))
    assert of_onnx.id == of_torchscript.id
    assert len({of_onnx.id, alone.id, other.id}) == 3


@either_format
def test_a_second_that_was_not_written_as_trained_is_refused(tmp_path, monkeypatch, suffix):
    honest = getattr(exporting, WRITERS[suffix])

    def corrupted(network, info, second, path):
        if second is None:  # it is the second itself
            with torch.no_grad():
                network.classifier.bias[0] += 0.01
        return honest(network, info, second, path)

    monkeypatch.setattr(exporting, WRITERS[suffix], corrupted)
    with pytest.raises(ModelError, match="differs from the trained one"):
        export(trained(), tmp_path / f"a{suffix}", CLIPS, second=trained(seed=1))
    assert not list(tmp_path.iterdir())


def test_the_command_takes_two_checkpoints_and_stores_what_both_together_are_worth(tmp_path, capsys):
    trained().save(tmp_path / "a.ckpt")
    trained(seed=1).save(tmp_path / "b.ckpt")
    out = tmp_path / "both.onnx"
    assert dispatch(["export", f"{tmp_path}/a.ckpt", "--second", f"{tmp_path}/b.ckpt", "-o", str(out)]) == 0
    assert "both.onnx: dstcn-tiny and a second network, 3 labels" in capsys.readouterr().err
    assert isinstance(load_spotter(out, "cpu"), Cascade)


@pytest.mark.parametrize(("model", "which"), [("dstcn-tiny", 0), ("stcn-small", 1)])
def test_training_begins_with_the_one_of_its_kind(tmp_path, model, which):
    checkpoints = trained(), trained("stcn-small", seed=1)
    path = tmp_path / "both.onnx"
    export(checkpoints[0], path, CLIPS, second=checkpoints[1])
    network = NETWORKS[model](3)
    begin_with(path, network, model, checkpoints[which].labels, [CLIPS])
    begun, learnt = network.state_dict()["classifier.weight"], checkpoints[which].best_state["classifier.weight"]
    torch.testing.assert_close(begun, learnt)
    assert origin(path).model == "stcn-small", "where no other is asked for, the one that knows more"


@pytest.mark.parametrize(
    ("labels", "out", "complaint"),
    [
        (("yes", "no", "up"), "c.onnx", "b.ckpt: as --second it needs the labels yes, no, _silence_; it has others"),
        (("yes", "no", "_silence_"), "b.ckpt", "b.ckpt: is the checkpoint itself; name another file with -o"),
    ],
)
def test_a_second_that_cannot_be_is_refused(tmp_path, labels, out, complaint):
    trained().save(tmp_path / "a.ckpt")
    trained(labels=labels).save(tmp_path / "b.ckpt")
    with pytest.raises(ConfigError, match=complaint):
        dispatch(["export", f"{tmp_path}/a.ckpt", "--second", f"{tmp_path}/b.ckpt", "-o", f"{tmp_path}/{out}"])


def put_in(path, second):
    """The second network of an ONNX artefact, exchanged for something else."""
    model = onnx.load(path)
    [entry] = [entry for entry in model.metadata_props if entry.key == SECOND]
    entry.value = second
    del model.metadata_props[-1]  # the checksum
    path.write_bytes(sealed(model.SerializeToString()))


def test_a_second_that_does_not_fit_or_is_damaged_is_refused(tmp_path):
    _, _, _, path = both(tmp_path, ".onnx")
    inner = read_artefact(path).second
    export(trained(labels=("yes", "up", "_silence_")), tmp_path / "other.onnx", CLIPS)
    for second, complaint in (
        ("not base64", r"is truncated or damaged"),
        (base64.b64encode(inner.data[:-100]).decode(), r"damaged"),
        (base64.b64encode(path.read_bytes()).decode(), r"the second network in it does not fit the first"),
        (base64.b64encode((tmp_path / "other.onnx").read_bytes()).decode(), r"the second network in it does not fit"),
    ):
        changed = tmp_path / "changed.onnx"
        changed.write_bytes(path.read_bytes())
        put_in(changed, second)
        with pytest.raises(ModelError, match=complaint) as failure:
            load_spotter(changed, "cpu")
        assert "changed.onnx: " in str(failure.value) and "\n" not in str(failure.value)


def test_both_are_run_by_our_own_engine_where_it_knows_them(tmp_path):
    export(trained(), tmp_path / "a.onnx", CLIPS, second=trained(seed=1))
    spotter = load_spotter(tmp_path / "a.onnx", "cpu", engine="native")
    assert isinstance(spotter.first, NativeSpotter) and isinstance(spotter.second, NativeSpotter)
    assert spotter.engine == "native"
    _, _, _, mixed = both(tmp_path, ".onnx")
    assert load_spotter(mixed, "cpu").engine == "native, ONNX Runtime"
    with pytest.raises(ConfigError, match="engine: native: not for"):
        load_spotter(mixed, "cpu", engine="native")


def test_what_it_says_of_itself_is_the_firsts_but_for_the_weights(tmp_path):
    first, _, info, path = both(tmp_path, ".onnx")
    alone = export(first, tmp_path / "alone.onnx", CLIPS)
    ours, theirs = msgspec.to_builtins(info), msgspec.to_builtins(alone)
    assert {key for key in ours if ours[key] != theirs[key]} == {"weights_sha256", "data"}
    assert read_artefact(path).second.info.architecture == "simplenet"
