"""`kwsd train`: repeatable, resumable, interruptible; then `kwsd eval` and `kwsd export` of what it wrote."""

import csv
import dataclasses
import itertools
import json
import math
import signal
import subprocess
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import soundfile
import tiny_speech_commands as tiny
import torch
from conftest import COMMAND
from running import clean_environment
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from kwsd.arguments import make_parser
from kwsd.artefact import read_info
from kwsd.cli import dispatch
from kwsd.commands.models import _command_line
from kwsd.errors import AudioError, ConfigError, KwsdError, ModelError
from kwsd.networks import NETWORKS
from kwsd.training import dataset, material, run
from kwsd.training import train as training
from kwsd.training.batches import AugmentedBatches, PlainBatches
from kwsd.training.begin import begin_with
from kwsd.training.checkpoint import SPEECH_COMMANDS, UNTOLD, load_checkpoint
from kwsd.training.dataset import load_clips
from kwsd.training.evaluate import evaluate_model
from kwsd.training.export import export, export_checkpoint
from kwsd.training.loss import corrected, cross_entropy, draw_mixup, smoothed
from kwsd.training.material import load_negatives
from kwsd.training.plan import Plan, TrainOptions
from kwsd.training.processes import ProcessGroup, join_process_group
from kwsd.training.recipe import RECIPES
from kwsd.training.run import learning_rate, moving_average, train_epoch
from kwsd.training.talk import Noise
from kwsd.training.teacher import load_teacher, load_teachers
from kwsd.training.train import _prepare, train
from kwsd.training.validation import HeldOut, Validated, labelled_windows, predictions, share_right

LABELS = "yes,no"
AUGMENTED = "yes,no,_unknown_,_silence_"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Decoded once for all tests here."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def quiet_machine(cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    torch.set_num_threads(1)


def options(data, out, **more):
    return TrainOptions(**({"model": "simplenet", "data": data, "out": out, "labels": LABELS, "device": "cpu"} | more))


def quietly(_):
    """Says nothing."""


def same(one, other):
    """Whether two checkpoints, or parts of them, are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


# --- the real command ---


def command(*arguments, cache, cwd):
    environment = clean_environment(XDG_CACHE_HOME=str(cache), OMP_NUM_THREADS="1")
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], cwd=cwd, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # A shell's background job has it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )  # fmt: skip


def kwsd(*arguments, cache, cwd):
    """stdout and stderr of a command that must end well."""
    with command(*arguments, cache=cache, cwd=cwd) as process:
        out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert "Warning" not in err
    return out, err


@pytest.fixture(scope="module")
def trained(data, cache, tmp_path_factory):
    """A folder with `models/simplenet.ckpt` after two epochs, and what the command said."""
    folder = tmp_path_factory.mktemp("trained")
    arguments = ("--model", "simplenet", "--data", data, "--labels", LABELS, "--epochs", "2", "--seed", "7")
    return folder, *kwsd("train", *arguments, "--device", "cpu", cache=cache, cwd=folder)


def test_the_command_writes_a_checkpoint_that_needs_no_unpickling(trained, data):
    folder, out, err = trained
    assert sorted(path.name for path in (folder / "models").iterdir()) == [
        f"simplenet.{end}" for end in ("ckpt", "csv", "png")
    ]
    content = torch.load(folder / "models/simplenet.ckpt", weights_only=True)
    assert (content["model"], content["labels"], content["epoch"]) == ("simplenet", ("yes", "no"), 2)
    assert content["seed"] == 7
    assert content["recipe"]["epochs"] == 2
    assert content["command"].startswith("kwsd train --model simplenet --data DATA --labels yes,no")
    assert str(data) not in content["command"] + content["data"]
    assert out == ""
    assert "training: 48 clips (down 12, no 12, up 12, yes 12)" in err
    assert "epoch 1/2: loss " in err
    assert "epoch 2/2: loss " in err


def test_what_was_typed_is_told_without_the_places_on_this_machine(monkeypatch):
    typed = [
        "train", "--model", "simplenet", "--data", "data", "--words=/home/ann/words", "--negatives", "data/speech",
        "--noise", "/home/ann/noise/", "--out", "out/data.ckpt", "--recipe", "data.yaml",
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["/usr/bin/kwsd", *typed])
    assert _command_line(make_parser().parse_args(typed)) == (
        "kwsd train --model simplenet --data DATA --words=words --negatives DATA/speech --noise noise/ "
        "--out data.ckpt --recipe data.yaml"
    )


def test_resumed_after_the_first_of_two_epochs_is_both_in_one_go(trained, data, cache, tmp_path):
    arguments = (
        "train", "--model", "simplenet", "--data", data, "--labels", LABELS, "--device", "cpu", "--seed", "7",
        "--out", "a.ckpt",
    )  # fmt: skip
    train(options(data, tmp_path / "a.ckpt", epochs=1, seed=7), quietly)
    assert load_checkpoint(tmp_path / "a.ckpt").epoch == 1
    _, err = kwsd(*arguments, "--epochs", "2", "--resume", cache=cache, cwd=tmp_path)
    assert "epoch 1/2" not in err
    in_one_go, resumed = (load_checkpoint(f) for f in (trained[0] / "models/simplenet.ckpt", tmp_path / "a.ckpt"))
    for part in ("epoch", "state", "average_state", "best_state", "best_score", "optimiser"):
        assert same(getattr(in_one_go, part), getattr(resumed, part)), part


def test_ctrl_c_leaves_a_usable_checkpoint(data, cache, tmp_path):
    arguments = ("--model", "simplenet", "--data", data, "--labels", LABELS, "--device", "cpu", "--out", "a.ckpt")
    with command("train", *arguments, "--epochs", "100000", cache=cache, cwd=tmp_path) as process:
        for line in process.stderr:
            if "epoch 1/" in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(timeout=30) == 130, rest
    assert "Traceback" not in rest
    assert {path.name for path in tmp_path.iterdir()} - {"a.csv"} == {"a.ckpt"}, "nothing half written"
    left = load_checkpoint(tmp_path / "a.ckpt")
    assert left.epoch >= 1
    assert left.network()(torch.zeros(1, 16_000)).shape == (1, 2)
    more = train(options(data, tmp_path / "a.ckpt", epochs=left.epoch + 1, resume=True), quietly)
    assert more.epoch == left.epoch + 1


def test_what_was_trained_is_exported_and_evaluated(trained, data, cache, capsys):
    folder, *_ = trained
    ckpt, artefact = folder / "models/simplenet.ckpt", folder / "models/simplenet.pt"
    _, err = kwsd("export", ckpt, "-o", artefact, "--data", data, cache=cache, cwd=folder)
    info = read_info(artefact)
    assert info.id in err
    assert info.labels == ("yes", "no")
    assert info.data.endswith("--labels yes,no --epochs 2 --seed 7 --device cpu")
    for model in (artefact, ckpt):
        assert dispatch(["eval", "--model", str(model), "--data", str(data), "--json"]) == 0
        overall = json.loads(capsys.readouterr().out)["overall"]
        assert overall["of"] == 8
        assert overall["accuracy"] == pytest.approx(info.figures[0].value, abs=1e-4)
    assert (folder / "models/simplenet.confusion.png").read_bytes().startswith(b"\x89PNG")


# --- repeatable ---


def test_the_seed_alone_decides_the_weights(data, tmp_path):
    once, again, otherwise = (
        train(options(data, tmp_path / f"{i}.ckpt", epochs=1, seed=seed), quietly) for i, seed in enumerate((1, 1, 2))
    )
    assert same(once.state, again.state)
    assert not same(once.state, otherwise.state)


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("talk")
    tiny.write(folder / "talk.wav", np.random.default_rng(1).normal(0, 0.1, 40_000))
    return folder


class Interrupting:
    """Presses Ctrl-C once the first epoch is announced."""

    def __call__(self, line):
        if line.startswith("epoch 1/"):
            raise KeyboardInterrupt


@pytest.fixture(params=["dstcn-tiny"])
def small(request, monkeypatch, talk):
    """Options for an augmented run of a few steps an epoch."""
    monkeypatch.setitem(
        RECIPES, request.param, msgspec.structs.replace(RECIPES[request.param], batch=24, hard_negatives=0.5)
    )
    return {"model": request.param, "labels": AUGMENTED, "negatives": (talk,)}


@pytest.mark.parametrize("small", ["dstcn-tiny", "bcresnet-1"], indirect=True)
def test_an_augmented_run_interrupted_and_resumed_is_the_same_as_in_one_go(data, small, tmp_path):
    in_one_go = train(options(data, tmp_path / "a.ckpt", **small, epochs=2), quietly)
    with pytest.raises(KeyboardInterrupt):
        train(options(data, tmp_path / "b.ckpt", **small, epochs=2), Interrupting())
    left = load_checkpoint(tmp_path / "b.ckpt")
    assert left.epoch == 1
    resumed = train(options(data, tmp_path / "b.ckpt", **small, epochs=2, resume=True), quietly)
    for part in ("state", "average_state", "best_state", "best_score", "optimiser"):
        assert same(getattr(in_one_go, part), getattr(resumed, part)), part
    assert not same(left.state, resumed.state)
    assert resumed.average_state is not None
    recipe = msgspec.structs.replace(RECIPES[small["model"]], epochs=2)
    assert load_checkpoint(tmp_path / "b.ckpt").recipe == msgspec.structs.asdict(recipe)


def test_before_every_epoch_talk_is_sought_that_the_network_takes_for_keywords(data, small, tmp_path, monkeypatch):
    model = small["model"]
    in_32_bits = msgspec.structs.replace(RECIPES[model], mixed_precision=False)  # in 16 any network would seem the one
    monkeypatch.setitem(RECIPES, model, in_32_bits)
    windows = torch.rand(5, 16_000, generator=torch.Generator().manual_seed(0)) - 0.5
    sought = []

    def mine(_, surest, epoch):
        likely = surest(windows)
        sought.append(epoch)
        if epoch:
            so_far = load_checkpoint(tmp_path / "a.ckpt")
            network = so_far.network().eval()
            network.load_state_dict(so_far.average_state)
            keywords = [i for i, label in enumerate(so_far.labels) if not label.startswith("_")]
            torch.testing.assert_close(likely, network(windows).detach()[:, keywords].amax(1), rtol=0, atol=1e-5)

    monkeypatch.setattr(AugmentedBatches, "mine", mine)
    train(options(data, tmp_path / "a.ckpt", **small, epochs=2), quietly)
    assert sought == [0, 1]


# --- validation takes no longer than training ---


@pytest.fixture
def long_validation(monkeypatch):
    """As if three epochs showed as many windows as there are to validate on."""
    seen = []
    epoch = training.train_epoch
    monkeypatch.setattr(training, "train_epoch", lambda now: seen.append(now) or epoch(now))
    monkeypatch.setattr(HeldOut, "__len__", lambda _: 3 * len(seen[0].batches) * seen[0].recipe.batch)


def validated_after(checkpoint):
    rows = csv.DictReader(checkpoint.with_suffix(".csv").read_text().splitlines())
    return [int(row["epoch"]) for row in rows if row["validation_accuracy"]]


def test_a_small_set_is_validated_when_as_much_was_learnt_from_and_at_the_end(data, small, tmp_path, long_validation):
    said = []
    train(options(data, tmp_path / "a.ckpt", **small, epochs=7), said.append)
    assert validated_after(tmp_path / "a.ckpt") == [3, 6, 7]
    lines = [line for line in said if line.startswith("epoch ")]
    assert [line.split(":")[0] for line in lines] == ["epoch 3/7", "epoch 6/7", "epoch 7/7"]
    assert all("validation accuracy" in line for line in lines)
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_ctrl_c_before_anything_was_validated_leaves_what_was_learnt(
    data, small, tmp_path, long_validation, monkeypatch
):
    one_epoch = training._one_epoch

    def interrupted_in_the_second(now, say):
        if now.epoch == 1:
            raise KeyboardInterrupt
        return one_epoch(now, say)

    monkeypatch.setattr(training, "_one_epoch", interrupted_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        train(options(data, tmp_path / "a.ckpt", **small, epochs=7), quietly)
    left = load_checkpoint(tmp_path / "a.ckpt")
    assert left.epoch == 1 and same(left.best_state, left.average_state)


# --- which weights are kept ---


@pytest.mark.parametrize(
    ("model", "scores", "kept"),
    [
        ("dstcn-tiny", [0.5, 0.6, 0.52], 2),
        ("dstcn-tiny", [0.5, 0.6, 0.58], 3),  # by less than a standard error worse
        ("dstcn-tiny", [0.6, 0.56, 0.52], 2),  # the third is worse by more, though hardly worse than the second
        ("dstcn-tiny", [0.0, 0.0, 0.0], 3),
        ("simplenet", [0.5, 0.6, 0.58], 2),  # its learning rate does not fall
    ],
)
def test_later_weights_are_kept_unless_worse_by_more_than_chance(data, tmp_path, monkeypatch, model, scores, kept):
    seen = []

    def validate(_, network, device):
        seen.append(training._copy(network))
        return Validated(scores[len(seen) - 1], None, windows=100)  # a standard error of about 0.05

    monkeypatch.setattr(HeldOut, "validate", validate)
    monkeypatch.setattr(training, "_is_time_to_validate", lambda _: True)
    made = train(options(data, tmp_path / "a.ckpt", model=model, epochs=3), quietly)
    assert not same(seen[kept - 1], seen[kept - 2])
    assert same(made.best_state, seen[kept - 1])
    assert made.best_score == max(scores)


# --- the moving average ---


def parameters(state):
    """The weights that are learnt, without what batch normalisation keeps."""
    return {name: weights for name, weights in state.items() if "running" not in name and "tracked" not in name}


def test_the_moving_average_is_what_is_validated_and_exported(data, small, tmp_path, monkeypatch):
    honest, validated = HeldOut.validate, []

    def watched(self, network, *more):
        validated.append(training._copy(network))
        return honest(self, network, *more)

    monkeypatch.setattr(HeldOut, "validate", watched)
    made = train(options(data, tmp_path / "a.ckpt", **small, epochs=1), quietly)
    assert same(validated, [made.average_state])
    assert same(made.best_state, made.average_state)
    assert not same(parameters(made.best_state), parameters(made.state))
    assert same(dict(made.network().state_dict()), made.average_state)
    assert same(load_checkpoint(tmp_path / "a.ckpt").average_state, made.average_state)


def test_the_article_keeps_no_average(data, tmp_path):
    made = train(options(data, tmp_path / "a.ckpt", epochs=1), quietly)
    assert made.average_state is None
    assert same(made.best_state, made.state)


@pytest.mark.parametrize(
    ("steps", "kept"), [(1, 2 / 11), (8, 1 / 2), (89, 10 / 11), (8_980, 8_981 / 8_990), (8_990, 0.999), (10**6, 0.999)]
)
def test_the_moving_average_is_quick_at_first_and_slow_later(steps, kept):
    averaged, current = [torch.zeros(3), torch.full((2, 2), 4.0)], [torch.ones(3), torch.full((2, 2), 4.0)]
    moving_average(0.999)(averaged, current, torch.tensor(steps))
    torch.testing.assert_close(averaged[0], torch.full((3,), 1 - kept), rtol=1e-4, atol=0)
    assert torch.equal(averaged[1], current[1]), "what stands still is its own average"
    assert torch.equal(current[0], torch.ones(3))


def test_what_normalisations_have_seen_is_averaged_with_the_weights_and_counts_are_of_now():
    network = nn.BatchNorm1d(1, momentum=1.0)
    average = training._average_of(network, 0.999)
    for seen in (0.0, 1.0, 1.0):  # the mean of a batch
        network(torch.tensor([[[seen - 1, seen + 1]]]))
        average.update_parameters(network)
    assert network.running_mean.item() == 1.0
    assert average.module.running_mean.item() == pytest.approx(1 - 2 / 11 * 3 / 12)
    assert average.module.num_batches_tracked.item() == 3


def test_the_moving_average_begins_with_the_weights_themselves_and_forgets_them_soon():
    network = nn.Linear(1, 1)
    average = AveragedModel(nn.Linear(1, 1), multi_avg_fn=moving_average(0.999))
    average.update_parameters(network)
    assert same(dict(average.module.state_dict()), dict(network.state_dict()))
    first = network.weight.item()
    with torch.no_grad():
        network.weight.fill_(first + 1.0)
    for _ in range(30):
        average.update_parameters(network)
    assert average.module.weight.item() > first + 0.99  # with 0.999 from the start it would be at 0.03


@pytest.mark.parametrize("out", ["exp1.1", "exp1.2.ckpt", "figures.csv"])
def test_figures_lie_beside_the_checkpoint_and_never_in_its_place(data, tmp_path, out):
    train(options(data, tmp_path / out, epochs=1), quietly)
    load_checkpoint(tmp_path / out)
    beside = out.removesuffix(".ckpt")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted(
        [out, f"{beside}.csv", f"{beside}.png"]
    )


def test_the_beginners_network_learns_silence_as_well_and_says_that_it_does_not_learn_from_talk(data, tmp_path):
    said = []
    tiny.write(tmp_path / "talk/a.wav", np.random.default_rng(0).normal(0, 0.1, 40_000).astype(np.float32))
    asked = options(data, tmp_path / "a.ckpt", epochs=1, labels="yes,no,_silence_", negatives=(tmp_path / "talk",))
    plan = Plan("simplenet", RECIPES["simplenet"], ("yes", "no", "_silence_"), asked.out, asked, said.append)
    with join_process_group(torch.device("cpu")) as group:
        run = _prepare(plan, torch.device("cpu"), group)
    learnt = torch.cat([targets for _, targets in run.batches.epoch(0)])
    assert (learnt == 2).sum() >= 1
    assert "simplenet learns from clips alone: --negatives are not used" in said


def test_every_process_draws_its_own_dropout_and_the_same_every_time(data, tmp_path):
    asked = options(data, tmp_path / "a.ckpt", epochs=1)
    plan = Plan("simplenet", RECIPES["simplenet"], ("yes", "no"), asked.out, asked, quietly)
    seeds = []
    with join_process_group(torch.device("cpu")) as group:
        run = _prepare(plan, torch.device("cpu"), group)
    for rank, epoch in itertools.product((0, 1, 2, 0), (0, 1)):
        run.group, run.epoch = ProcessGroup(rank), epoch
        train_epoch(run)
        seeds.append(torch.initial_seed())
    assert seeds[:2] == seeds[-2:] == [0, 1]
    assert len({seed & 0xFFFFFFFF for seed in seeds}) == 6, "which is all that torch takes of a seed on the CPU"


def test_speakers_on_both_sides_are_told(tmp_path, cache):
    for n, (who, day) in enumerate(itertools.product(("ann", "bob"), ("monday", "tuesday"))):
        tiny.write(tmp_path / f"words/yes/{who}/{day}.wav", tiny.tone("yes", seed=n))
    lists = {"validation": "yes/ann/monday.wav\nyes/bob/monday.wav\n", "testing": ""}
    for subset, names in lists.items():
        (tmp_path / f"words/{subset}_list.txt").write_text(names)
    said = []
    asked = options(None, tmp_path / "a.ckpt", labels="yes,_unknown_", words=(tmp_path / "words",), epochs=1)
    train(asked, said.append)
    assert any(line.startswith("2 of 2 speakers who are validated on are trained on as well") for line in said)


def test_a_checkpoint_is_not_overwritten_unasked(data, tmp_path):
    out = tmp_path / "a.ckpt"
    train(options(data, out, epochs=1), quietly)
    before = out.read_bytes()
    with pytest.raises(ConfigError, match=r"a\.ckpt: is there already; go on with it by --resume, or name another"):
        train(options(data, out, epochs=1), quietly)
    assert out.read_bytes() == before


def test_a_folder_is_no_place_for_a_checkpoint(data, tmp_path):
    with pytest.raises(KwsdError, match="is a folder; name a file in it with --out"):
        train(options(data, tmp_path, epochs=1), quietly)


# --- interrupted ---


def interrupt_in_the_first_epoch(monkeypatch):
    honest = PlainBatches.epoch

    def interrupted(self, number):
        yield from itertools.islice(honest(self, number), 1)
        raise KeyboardInterrupt

    monkeypatch.setattr(PlainBatches, "epoch", interrupted)


def test_ctrl_c_in_the_first_epoch_leaves_half_an_epoch(data, tmp_path, monkeypatch):
    interrupt_in_the_first_epoch(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(options(data, tmp_path / "a.ckpt"), quietly)
    left = load_checkpoint(tmp_path / "a.ckpt")
    assert left.epoch == 0
    assert same(left.state, left.best_state)
    assert left.network()(torch.zeros(1, 16_000)).shape == (1, 2)


def test_ctrl_c_while_clips_are_loaded_says_that_nothing_was_learnt(data, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(material, "load_subset", interrupted)
    said = []
    with pytest.raises(KeyboardInterrupt):
        train(options(data, tmp_path / "a.ckpt"), said.append)
    assert said[-1] == "interrupted before anything was learnt; begin again, without --resume"
    assert not (tmp_path / "a.ckpt").exists()


def test_what_the_loading_of_clips_took_is_not_kept(data, tmp_path, monkeypatch):
    called = []
    for name in ("_keep_memory", "_prepare"):
        honest = getattr(training, name)
        monkeypatch.setattr(
            training, name, lambda *more, name=name, honest=honest: called.append(name) or honest(*more)
        )
    train(options(data, tmp_path / "a.ckpt", epochs=1), quietly)
    assert called == ["_prepare", "_keep_memory"]


def test_ctrl_c_says_how_to_go_on(data, tmp_path, monkeypatch):
    interrupt_in_the_first_epoch(monkeypatch)
    said = []
    with pytest.raises(KeyboardInterrupt):
        train(options(data, tmp_path / "a.ckpt"), said.append)
    assert said[-1] == f"stopped; the same command with --resume goes on from {tmp_path}/a.ckpt"
    monkeypatch.undo()
    assert train(options(data, tmp_path / "a.ckpt", epochs=1, resume=True), quietly).epoch == 1


# --- resumed wrongly, or asked for what cannot be ---


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"labels": "yes,up"}, "other labels"),
        ({"labels": "no,yes"}, "other labels"),
        ({"seed": 1}, "begun with --seed 0"),
        ({"recipe": "optimiser: sgd"}, "begun with the optimiser adam; --resume needs the same"),
        ({"out": "nowhere.ckpt"}, "no such checkpoint"),
    ],
)
def test_another_run_cannot_be_resumed(data, tmp_path, changed, complaint):
    train(options(data, tmp_path / "a.ckpt", epochs=1), quietly)
    if "out" in changed:
        changed = {"out": tmp_path / changed["out"]}
    if "recipe" in changed:
        changed = {"recipe": a_recipe(tmp_path, changed["recipe"])}
    with pytest.raises((ConfigError, ModelError), match=complaint):
        train(dataclasses.replace(options(data, tmp_path / "a.ckpt", epochs=2, resume=True), **changed), quietly)


def a_recipe(folder, *lines):
    (folder / "r.yaml").write_text("\n".join(("model: simplenet", "labels: yes,no", *lines)))
    return folder / "r.yaml"


def test_a_resumed_run_takes_the_weight_decay_of_the_recipe(data, tmp_path):
    train(options(data, tmp_path / "a.ckpt", epochs=1), quietly)
    more = options(data, tmp_path / "a.ckpt", epochs=2, resume=True, recipe=a_recipe(tmp_path, "weight_decay: 0.5"))
    assert train(more, quietly).optimiser["param_groups"][0]["weight_decay"] == 0.5


def test_with_other_clips_to_validate_on_the_best_so_far_is_scored_anew(data, tmp_path):
    """Else a score from before may never be reached again, and all that is learnt be thrown away."""
    first = train(options(data, tmp_path / "a.ckpt", epochs=1), quietly)
    perfect = dataclasses.replace(first, best_score=1.0)
    perfect.save(tmp_path / "a.ckpt")
    train(options(data, tmp_path / "a.ckpt", epochs=1, resume=True), quietly)
    assert train(options(data, tmp_path / "a.ckpt", epochs=2, resume=True), quietly).best_score == 1.0, "the same clips"
    perfect.save(tmp_path / "a.ckpt")
    said = []
    tiny.write(tmp_path / "words/yes/1.wav", tiny.tone("no"))  # which no network can know
    tiny.write(tmp_path / "words/no/2.wav", tiny.tone("yes", seed=1))
    (tmp_path / "words/validation_list.txt").write_text("yes/1.wav\nno/2.wav\n")
    tiny.write(tmp_path / "words/yes/3.wav", tiny.tone("yes"))
    more = options(data, tmp_path / "a.ckpt", epochs=2, resume=True, words=(tmp_path / "words",))
    resumed = train(more, said.append)
    assert resumed.best_score < 1.0 and resumed.validated_on != first.validated_on
    assert any(line.startswith("validated on other recordings than before: the best weights so far") for line in said)


def test_a_run_that_has_all_its_epochs_says_so(data, tmp_path):
    said = []
    train(options(data, tmp_path / "a.ckpt", epochs=1), quietly)
    train(options(data, tmp_path / "a.ckpt", epochs=1, resume=True), said.append)
    assert f"{tmp_path / 'a.ckpt'}: has all its 1 epochs; --epochs says how many there are to be" in said


def test_a_resumed_run_needs_no_more_what_it_began_with(learnt, tmp_path):
    data, _, path = learnt
    begun_with = tmp_path / "begun_with.ckpt"
    begun_with.write_bytes(path.read_bytes())
    asked = options(data, tmp_path / "b.ckpt", model=None, labels="yes,up", init=begun_with, epochs=1)
    train(asked, quietly)
    begun_with.unlink()
    said = []
    assert train(dataclasses.replace(asked, epochs=2, labels=None, resume=True), said.append).labels == ("yes", "up")
    assert not any("learnt from nothing" in line for line in said)


def test_the_licence_is_that_of_the_recordings(learnt, tmp_path):
    data, before, path = learnt
    assert before.licence == SPEECH_COMMANDS
    words, noise = tmp_path / "words", (tiny.folder(data) / "_background_noise_",)
    for word, number in itertools.product(("yes", "no"), range(4)):
        tiny.write(words / f"{word}/{number}.wav", tiny.tone(word, seed=number))
    (words / "validation_list.txt").write_text("yes/0.wav\nno/0.wav\n")
    own = options(None, tmp_path / "b.ckpt", model="dstcn-tiny", words=(words,), noise=noise, epochs=1)
    assert train(own, quietly).licence == UNTOLD
    assert train(dataclasses.replace(own, out=tmp_path / "c.ckpt", init=path), quietly).licence == SPEECH_COMMANDS


def test_a_table_of_somebody_elses_is_not_overwritten(data, tmp_path):
    (tmp_path / "a.csv").write_text("what,where\nsaw,shed\n")
    with pytest.raises(ConfigError, match=r"a\.csv: is there already, and is no history of a run; choose another"):
        train(options(data, tmp_path / "a.ckpt", epochs=1), quietly)
    assert (tmp_path / "a.csv").read_text() == "what,where\nsaw,shed\n" and not (tmp_path / "a.ckpt").exists()
    train(options(data, tmp_path / "b.ckpt", epochs=1), quietly)
    (tmp_path / "b.ckpt").unlink()
    train(options(data, tmp_path / "b.ckpt", epochs=1), quietly)  # over its own


@pytest.mark.parametrize(
    ("changed", "error", "code", "complaint"),
    [
        ({"model": "unheard-of"}, ConfigError, 78, "no such network; there are simplenet, dstcn-tiny"),
        ({"seed": -1}, ConfigError, 2, "--seed -1"),
        ({"labels": "zero,one"}, AudioError, 66, "none of the training clips"),
        ({"labels": "yes,"}, ConfigError, 78, "empty label"),
        ({"batch": 1}, ConfigError, 2, "--batch 1: at least 2, two for each process"),
    ],
)
def test_what_cannot_be_trained_is_refused(data, tmp_path, changed, error, code, complaint):
    with pytest.raises(error, match=complaint) as failure:
        train(dataclasses.replace(options(data, tmp_path / "models/a.ckpt"), **changed), quietly)
    assert failure.value.exit_code == code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.onnx", "a.pt"])
def test_a_checkpoint_is_not_named_as_an_artefact(data, tmp_path, name):
    with pytest.raises(KwsdError, match=f"{name}: a checkpoint is no artefact; name a.ckpt, and then kwsd export"):
        train(options(data, tmp_path / name, epochs=1), quietly)


def test_any_seed_will_do(data, tmp_path):
    assert train(options(data, tmp_path / "a.ckpt", epochs=1, seed=2**63 - 1), quietly).seed == 2**63 - 1


def test_a_label_without_clips_is_named(data, tmp_path):
    said = []
    with pytest.raises(AudioError, match=r"no training clips of: zero, silence; did you mean _silence_\?; record some"):
        train(options(data, tmp_path / "a.ckpt", labels="yes,zero,silence,_unknown_", epochs=1), said.append)
    assert not (tmp_path / "a.ckpt").exists()
    train(options(data, tmp_path / "a.ckpt", labels="yes,zero,_unknown_", quick=True), said.append)
    assert "no training clips of: zero" in said, "a quick try is of what there is"


def test_a_label_that_is_known_already_may_go_without_clips(learnt, tmp_path):
    data, _, path = learnt
    noise = (tiny.folder(data) / "_background_noise_",)
    said, words = [], tmp_path / "words"
    for number in range(8):
        tiny.write(words / f"yes/{number}.wav", tiny.tone("yes", seed=number))
    (words / "validation_list.txt").write_text("yes/0.wav\n")
    out = tmp_path / "b.ckpt"
    train(options(None, out, model=None, labels=None, words=(words,), init=path, noise=noise, epochs=1), said.append)
    assert "no training clips of: no" in said
    assert load_checkpoint(tmp_path / "b.ckpt").labels == ("yes", "no"), "those of what it begins with"


def test_words_that_are_no_labels_are_told(data, tmp_path):
    said = []
    train(options(data, tmp_path / "a.ckpt", labels="yes,no,_unknown_", epochs=1), said.append)
    train(options(data, tmp_path / "b.ckpt", labels="yes,no", epochs=1), said.append)
    assert [line for line in said if "up 12" in line and "clips" not in line] == [
        "learnt as _unknown_: down 12, up 12", "not used, as no labels: down 12, up 12",
    ]  # fmt: skip
    with pytest.raises(AudioError, match=r"one of the labels marvin, sheila; they are of .*up.*: name --labels"):
        train(options(data, tmp_path / "c.ckpt", labels="marvin,sheila", epochs=1), quietly)


def test_that_nothing_says_what_other_speech_is_is_told(data, tmp_path):
    said = []
    train(options(data, tmp_path / "a.ckpt", labels="yes,no,up,down,_unknown_", epochs=1), said.append)
    assert any(line.startswith("there is nothing to learn _unknown_ from") for line in said)


def test_talk_and_noise_that_are_no_labels_are_told(data, tmp_path, talk):
    def told(labels, **more):
        said = []
        asked = options(data, tmp_path / f"{labels}.ckpt", labels=labels, epochs=1, **more)
        train(asked, said.append)
        return [line.split(",")[0] for line in said if "is not learnt as" in line]

    noise = {"noise": (talk,)}
    assert told("yes,no", model="dstcn-tiny", negatives=(talk,)) == [
        "talk is not learnt as _unknown_", "noise is not learnt as _silence_",
    ]  # fmt: skip
    assert told("yes,no,_unknown_,_silence_", model="dstcn-tiny", negatives=(talk,), **noise) == []
    assert told("no,yes") == [] and told("no,yes,_unknown_", **noise) == ["noise is not learnt as _silence_"]


def test_words_with_hardly_a_clip_to_validate_on_are_told(tmp_path):
    folder = own_words(tmp_path / "mine", yes=["a", "b", "c", "d"], no=["a", "b", "c"], up=["a", "b"])
    held_out = [*(f"yes/{who}" for who in "bcd"), *(f"no/{who}" for who in "bc")]
    (folder / "validation_list.txt").write_text("".join(f"{name}_nohash_0.wav\n" for name in held_out))
    said = []
    train(options(None, tmp_path / "a.ckpt", labels="yes,no,up", words=(folder,), epochs=1), said.append)
    assert any(line.startswith("few validation clips: no 2, up 0; how well") for line in said)


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoint(data, tmp_path, monkeypatch):
    train(options(data, tmp_path / "a.ckpt", epochs=1), quietly)
    before = (tmp_path / "a.ckpt").read_bytes()
    monkeypatch.setattr(run, "cross_entropy", lambda log_probs, _: log_probs.sum(1) * math.nan)
    with pytest.raises(KwsdError, match="not a number"):
        train(options(data, tmp_path / "a.ckpt", epochs=2, resume=True), quietly)
    assert (tmp_path / "a.ckpt").read_bytes() == before


# --- training, validation and testing kept apart ---


def test_validation_clips_among_the_training_clips_are_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "load_clips", lambda root, subset, **_: load_clips(root, "training"))
    with pytest.raises(AudioError, match="validation clips are among the training clips"):
        train(options(data, tmp_path / "a.ckpt"), quietly)


def test_no_sample_of_noise_is_in_two_subsets(tmp_path):
    background = tiny.folder(tmp_path) / "_background_noise_"
    for i in range(2):
        tiny.write(background / f"{i}.wav", (np.arange(10_000) + 10_000 * i).astype(np.int16))
    parts = [Noise(tmp_path).part(subset).tolist() for subset in ("training", "validation", "testing")]
    assert sorted(itertools.chain.from_iterable(parts)) == list(range(20_000))
    assert [len(part) for part in parts] == [16_000, 2_000, 2_000]


def test_more_noise_is_added_and_none_at_all_is_an_error(data, talk, tmp_path):
    assert Noise(data, (talk,)).part("training").size == 0.8 * (160_000 + 40_000)
    assert Noise(None, (talk, data)).part("training").size == 0.8 * (160_000 + 40_000)
    assert Noise(tmp_path, (talk,)).part("training").size == 0.8 * 40_000
    parts = Noise(data, (talk,)).parts("validation")
    assert [[recording.size for recording in part] for part in parts] == [[16_000], [4_000]]
    for nowhere in (tmp_path, None):
        with pytest.raises(AudioError, match="--noise"):
            Noise(nowhere).part("training")


def test_keywords_are_sought_only_in_talk_whose_words_are_known(data, small, tmp_path, talk):
    told = tmp_path / "told"
    tiny.write(told / "a.wav", np.random.default_rng(2).normal(0, 0.1, 50_000))
    (told / "transcripts.tsv").write_text("a.wav\tgood evening\n")
    said, sought = [], []
    for negatives in ((talk, told), (talk,)):
        plan = options(data, tmp_path / "a.ckpt", **{**small, "negatives": negatives})
        talk_to_learn, held_out = load_negatives(plan.negatives, ("yes", "no"), 0.5, said.append)
        sought.append((talk_to_learn.checked, talk_to_learn.samples.size, held_out.size))
    assert sought == [(45_000, 81_000, 9_000), (0, 36_000, 4_000)]
    assert [line.split(", ")[1] for line in said[:2]] == [
        "0.0 min of it with transcripts",
        "0.1 min of it with transcripts",
    ]
    assert "in noise alone" in said[3] and len(said) == 4


def test_talk_that_is_all_cut_out_is_none(data, small, tmp_path, talk):
    (tmp_path / "a.wav").write_bytes((talk / "talk.wav").read_bytes())
    (tmp_path / "a.tsv").write_text("start_s\tend_s\tkeyword\n0.0\t9.0\tyes\n")
    plan = options(data, tmp_path / "a.ckpt", **{**small, "negatives": (tmp_path,)})
    assert load_negatives(plan.negatives, ("yes", "no"), 0.5, quietly) == (None, None)


def test_silence_is_tested_with_one_piece_of_noise_per_eleven_clips(data):
    clips = load_clips(data, "training")
    windows, targets = labelled_windows(clips, ("yes", "no", "_unknown_", "_silence_"), Noise(data), "training")
    assert windows.shape == (48 + 4, 16_000)
    assert windows.dtype == torch.int16
    assert torch.bincount(targets).tolist() == [12, 12, 24, 4]
    assert np.array_equal(windows[:48].numpy(), clips.samples)
    windows, targets = labelled_windows(clips, ("no", "yes"), Noise(data), "training")
    assert torch.bincount(targets).tolist() == [12, 12]


def test_every_piece_of_noise_is_of_one_recording(data, tmp_path):
    """Where one follows another the sound changes suddenly, and a network is not to blame for what it makes of that."""
    hums = [np.full(20 * 16_000, level, np.int16) for level in (1000, 2000, 3000)]
    for hum in hums:
        soundfile.write(tmp_path / f"{hum[0]}.wav", hum, 16_000)
    clips = load_clips(data, "training")
    many = clips.take(np.tile(np.arange(len(clips)), 20))
    windows, targets = labelled_windows(many, ("yes", "no", "_silence_"), Noise(None, (tmp_path,)), "testing")
    quiet = windows[targets == 2].numpy()
    assert len(quiet) > 40 and (quiet == quiet[:, :1]).all()
    assert set(quiet[:, 0]) == {1000, 2000, 3000}


def test_recordings_of_noise_too_short_to_take_a_second_of_are_taken_end_to_end(data, tmp_path):
    for level in (1000, 2000, 3000):
        soundfile.write(tmp_path / f"{level}.wav", np.full(8000, level, np.int16), 16_000)
    windows, targets = labelled_windows(
        load_clips(data, "training"), ("yes", "_silence_"), Noise(None, (tmp_path,)), "training"
    )
    assert set(windows[targets == 1].numpy().ravel()) == {1000, 2000, 3000}


def test_evaluation_neither_drops_out_nor_learns():
    torch.manual_seed(0)
    network = NETWORKS["dstcn-tiny"](3).train()
    windows = (torch.randn(300, 16_000) * 3000).short()  # more than one batch
    state = {name: weights.clone() for name, weights in network.state_dict().items()}
    log_probs = torch.cat(list(predictions(network, windows, torch.device("cpu"))))
    assert same(dict(network.state_dict()), state)
    with torch.no_grad():
        torch.testing.assert_close(log_probs, network.eval()(windows / 32768.0), rtol=0, atol=1e-4)
    assert share_right(network, windows, log_probs.argmax(1), torch.device("cpu")) == 1.0
    assert not torch.is_inference_mode_enabled()


def test_quick_is_short(data, tmp_path):
    said = []
    quick = train(options(data, tmp_path / "a.ckpt", quick=True), said.append)
    assert quick.epoch == quick.recipe["epochs"] == 3
    assert {"epoch 3/3"} < {line.split(":")[0] for line in said}


# --- the arithmetic ---


@pytest.mark.parametrize(
    ("epochs_done", "share"),
    [(0.0, 0.0), (1.0, 0.5), (2.0, 1.0), (6.0, 0.5), (10.0, 0.0), (11.0, 0.0), (4.0, 0.5 + math.sqrt(0.5) / 2)],
)
def test_the_learning_rate_warms_up_and_falls_along_a_cosine(epochs_done, share):
    recipe = msgspec.structs.replace(RECIPES["dstcn-base"], epochs=10, warmup_epochs=2.0, learning_rate=0.1)
    assert learning_rate(recipe, epochs_done) == pytest.approx(0.1 * share)


def test_the_articles_learning_rate_is_constant():
    assert {learning_rate(RECIPES["simplenet"], e) for e in (0.1, 1, 19.9)} == {1e-3}


@pytest.mark.parametrize("smoothing", [0.0, 0.05, 0.3])
def test_the_loss_is_torchs_label_smoothing(smoothing):
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
    expected = F.cross_entropy(logits, targets, label_smoothing=smoothing)
    wanted = smoothed(targets, 5, smoothing)
    torch.testing.assert_close(cross_entropy(logits.log_softmax(1), wanted).mean(), expected)


def test_mixup_takes_of_each_other_window_the_smaller_share():
    generator = torch.Generator().manual_seed(0)
    partner, share = draw_mixup(10_000, 0.2, generator)
    assert sorted(partner.tolist()) == list(range(10_000))
    assert share.shape == (10_000, 1)
    assert share.min() >= 0.0 and share.max() <= 0.5
    # Of Beta(0.2, 0.2) a quantile is known: half of the smaller shares lie under its first quartile.
    assert float((share < 0.01884).float().mean()) == pytest.approx(0.5, abs=0.02)
    again = draw_mixup(10_000, 0.2, torch.Generator().manual_seed(0))
    assert torch.equal(again[0], partner) and torch.equal(again[1], share)


def test_mixed_windows_are_to_be_heard_as_both(data, small, tmp_path, monkeypatch):
    asked = []
    honest = run.cross_entropy

    def watched(log_probs, wanted):
        asked.append(wanted)
        return honest(log_probs, wanted)

    monkeypatch.setattr(run, "cross_entropy", watched)
    recipe = msgspec.structs.replace(RECIPES["dstcn-tiny"], mixup=0.4, label_smoothing=0.0)
    monkeypatch.setitem(RECIPES, "dstcn-tiny", recipe)
    train(options(data, tmp_path / "a.ckpt", **small, epochs=1), quietly)
    for wanted in asked:
        torch.testing.assert_close(wanted.sum(1), torch.ones(len(wanted)))
        assert ((wanted > 0).sum(1) <= 2).all(), "no more than two labels for one window"
        assert ((wanted > 0).sum(1) == 2).any(), "but two for some"


# --- said on the command line, or in a recipe ---


def test_a_recipe_names_the_network_and_the_command_line_goes_over_it(data, tmp_path):
    (tmp_path / "r.yaml").write_text("model: simplenet\nlabels: yes,no\nepochs: 2\nthresholds: {no: 0.9}\n")
    plain = {"model": None, "labels": None, "recipe": tmp_path / "r.yaml"}
    made = train(options(data, tmp_path / "a.ckpt", **plain, epochs=1, batch=7), quietly)
    assert (made.model, made.labels, made.epoch) == ("simplenet", ("yes", "no"), 1)
    assert (made.recipe["batch"], made.recipe["learning_rate"]) == (7, RECIPES["simplenet"].learning_rate)
    exported = export_checkpoint(tmp_path / "a.ckpt", tmp_path / "a.pt", None, None, ())
    assert exported.thresholds == {"no": 0.9}
    exported = export_checkpoint(tmp_path / "a.ckpt", tmp_path / "a.pt", None, None, ("no=0.5", "yes=0.4"))
    assert exported.thresholds == {"no": 0.5, "yes": 0.4}
    with pytest.raises(ConfigError, match=r"r\.yaml is for simplenet; leave out one of the two"):
        train(options(data, tmp_path / "a.ckpt", **plain | {"model": "dstcn-tiny"}), quietly)


def test_thresholds_of_words_that_are_no_labels_are_refused_and_of_other_labels_left_out(data, tmp_path):
    recipe = a_recipe(tmp_path, "thresholds: {down: 0.9, yes: 0.8}")
    with pytest.raises(ConfigError, match=r"thresholds: down is none of the labels yes, no"):
        train(options(data, tmp_path / "a.ckpt", labels=None, recipe=recipe), quietly)
    said = []
    made = train(options(data, tmp_path / "a.ckpt", labels="yes,up", recipe=recipe, epochs=1), said.append)
    assert f"{recipe}: has thresholds of words that are no labels, not used: down" in said
    assert made.recipe["thresholds"] == {"yes": 0.8}


@pytest.mark.parametrize(("fits", "remedy"), [(12, "--batch 12 fits"), (0, "a smaller --batch")])
def test_a_gpu_that_is_too_small_for_a_batch_is_said_with_one_that_fits(
    data, small, tmp_path, monkeypatch, fits, remedy
):
    """A GPU cannot be had everywhere, nor filled at will: what its library says then is said in its stead."""
    honest = run.cross_entropy

    def crammed(log_probs, wanted):
        if len(log_probs) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(log_probs, wanted)

    monkeypatch.setattr(run, "cross_entropy", crammed)
    with pytest.raises(KwsdError, match=f"does not hold a batch of 24 windows; {remedy}") as failure:
        train(options(data, tmp_path / "a.ckpt", **small, epochs=1), quietly)
    assert failure.value.exit_code == 69
    assert not (tmp_path / "a.ckpt").exists()


# --- beginning with what another run has learnt ---

UNLEARNT = {"model": "dstcn-tiny", "epochs": 1}


def weights_at_the_start(data, folder, say=quietly, **more):
    """What a run begins with: Ctrl-C before the first step writes it."""

    def interrupted(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(options(data, folder / "start.ckpt", **UNLEARNT | more), say)
    return load_checkpoint(folder / "start.ckpt").best_state


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    data = tiny.make(tmp_path_factory.mktemp("learnt"))
    path = data / "learnt.ckpt"
    train(options(data, path, **UNLEARNT, labels="yes,no"), quietly)
    return data, load_checkpoint(path), path


def test_a_run_begins_with_all_weights_of_another_with_the_same_labels(learnt, tmp_path):
    data, before, path = learnt
    assert same(weights_at_the_start(data, tmp_path, labels="yes,no", init=path), before.best_state)


@pytest.mark.parametrize("labels", ["no,up", "up,yes,no"])
def test_for_other_labels_it_begins_with_all_that_both_know(learnt, tmp_path, labels):
    data, before, path = learnt
    said = []
    begun = weights_at_the_start(data, tmp_path, said.append, labels=labels, init=path)
    assert f"{path}: up must be learnt from nothing" in said
    theirs = dict(before.best_state)
    for name in ("classifier.weight", "classifier.bias"):
        ours, known = begun.pop(name), theirs.pop(name)
        for row, label in enumerate(labels.split(",")):
            in_both = label in before.labels
            assert torch.equal(ours[row], known[before.labels.index(label)]) if in_both else ours[row].any()
    assert same(begun, theirs)


def test_another_network_cannot_be_begun_with(learnt, tmp_path):
    data, _, path = learnt
    with pytest.raises(ConfigError, match=r"is a dstcn-tiny, which --model simplenet cannot begin with"):
        train(options(data, tmp_path / "a.ckpt", init=path), quietly)


@pytest.fixture(scope="module", params=["dstcn-tiny", "stcn-small", "bcresnet-1"])
def exported(request, tmp_path_factory):
    """A checkpoint whose normalisations have something to do, and the artefact of it."""
    folder = tmp_path_factory.mktemp(request.param)
    data = tiny.make(folder)
    train(options(data, folder / "a.ckpt", model=request.param, labels="yes,no", epochs=2), quietly)
    checkpoint = load_checkpoint(folder / "a.ckpt")
    export(checkpoint, folder / "a.onnx", torch.zeros(1, 16_000))
    return data, checkpoint, folder / "a.onnx"


def test_a_run_begins_with_what_an_artefact_says(exported, tmp_path):
    data, before, artefact = exported
    begun = NETWORKS[before.model](2)
    begun.load_state_dict(weights_at_the_start(data, tmp_path, model=before.model, labels="yes,no", init=artefact))
    windows = torch.randn(8, 16_000, generator=torch.Generator().manual_seed(0)) * 0.1
    with torch.inference_mode():
        torch.testing.assert_close(begun.eval()(windows), before.network()(windows), rtol=0, atol=1e-4)


def test_the_normalisations_of_an_artefact_do_in_training_what_they_do_afterwards(exported):
    _, before, artefact = exported
    network = NETWORKS[before.model](2)
    windows = torch.randn(64, 16_000, generator=torch.Generator().manual_seed(0)) * 0.1
    assert begin_with(artefact, network, before.model, ("yes", "no"), [windows[:32], windows[32:]]) == ()
    with torch.inference_mode():
        afterwards = network.eval()(windows)
        network.train().apply(lambda layer: layer.eval() if isinstance(layer, nn.Dropout2d) else None)
        training = network(windows)
    torch.testing.assert_close(training, afterwards, rtol=0, atol=1e-3)


def test_without_another_word_the_network_is_that_of_the_artefact(exported, tmp_path):
    data, before, artefact = exported
    begun = weights_at_the_start(data, tmp_path, model=None, labels="yes,no", init=artefact)
    assert begun.keys() == before.best_state.keys()


def test_the_models_that_kwsd_comes_with_have_names(data, cache, tmp_path):
    tiny.write(tmp_path / "words/fine/1.wav", tiny.tone("up"))
    (tmp_path / "words/validation_list.txt").write_text("")
    labels = "yes,no,_unknown_,fine"
    arguments = ("--init", "commands-fast", "--data", data, "--words", "words", "--labels", labels, "--epochs", "1")
    shown = kwsd("train", *arguments, "--out", "a.ckpt", cache=cache, cwd=tmp_path)
    assert "commands-fast.onnx: _unknown_, fine must be learnt from nothing" in "".join(shown)
    assert load_checkpoint(tmp_path / "a.ckpt").model == "stcn-base"


def test_for_other_labels_it_begins_with_all_of_an_artefact_that_both_know(exported, tmp_path):
    data, before, artefact = exported
    said = []
    begun = weights_at_the_start(data, tmp_path, said.append, model=before.model, labels="no,up,yes", init=artefact)
    assert f"{artefact}: up must be learnt from nothing" in said
    kernels = [name for name, weight in begun.items() if "depthwise" in name or weight.shape[1:] == (1, 3, 1)]
    assert kernels
    for name in kernels:
        torch.testing.assert_close(begun[name], before.best_state[name])
    for row, known in ((0, 1), (2, 0)):  # no and yes
        assert torch.equal(begun["classifier.weight"][row], before.best_state["classifier.weight"][known])


@pytest.mark.parametrize(
    ("model", "file", "complaint"),
    [
        ("dstcn-base", "commands-fast.onnx", "is a stcn-base, which --model dstcn-base cannot begin with"),
        ("stcn-base", "commands-fast.pt", r"TorchScript keeps its weights to itself; name the \.onnx"),
        ("simplenet", "simplenet.pt", r"TorchScript keeps its weights to itself; name the \.onnx"),
        ("dstcn-base", "commands.yaml", "not a checkpoint, damaged"),
        ("dstcn-base", "nothing.onnx", "no such model"),
    ],
)
def test_a_file_that_cannot_be_begun_with_is_refused(data, tmp_path, model, file, complaint):
    path = Path(__file__).parent.parent / "models" / file
    with pytest.raises(KwsdError, match=complaint):
        train(options(data, tmp_path / "a.ckpt", model=model, init=path), quietly)
    assert not (tmp_path / "a.ckpt").exists()


def test_a_run_begins_with_an_artefact_that_has_nothing_to_normalise(data, tmp_path):
    train(options(data, tmp_path / "a.ckpt", model="simplenet", epochs=1), quietly)
    before = load_checkpoint(tmp_path / "a.ckpt")
    export(before, tmp_path / "a.onnx", torch.zeros(1, 16_000))
    assert same(weights_at_the_start(data, tmp_path, model=None, init=tmp_path / "a.onnx"), before.best_state)


def test_an_artefact_of_another_network_by_the_same_name_is_refused(exported, tmp_path):
    data, before, _ = exported
    other = tmp_path / "other.onnx"
    named = "stcn-small" if before.model == "dstcn-tiny" else "dstcn-tiny"
    export(before, other, torch.zeros(1, 16_000))
    model = onnx.load(other)
    model.metadata_props[0].value = model.metadata_props[0].value.replace(before.model, named)
    del model.metadata_props[1:]  # the checksum
    onnx.save(model, other)
    with pytest.raises(ModelError, match=r"other\.onnx: an export of another kwsd or network"):
        train(options(data, tmp_path / "a.ckpt", model=named, labels="yes,no", init=other), quietly)


# --- words of one's own, and teachers ---


def own_words(folder, **speakers):
    """`folder/<word>/<speaker>_nohash_0.wav`, all to train on."""
    for word, names in speakers.items():
        for i, name in enumerate(names):
            tiny.write(folder / f"{word}/{name}_nohash_0.wav", tiny.tone(word, seed=i))
    (folder / "validation_list.txt").write_text("")
    return folder


def test_own_words_are_trained_on_besides_the_data_set(data, tmp_path):
    folder = own_words(tmp_path / "mine", yes=["ann", "bob"], down=["ann"])
    said = []
    made = train(options(data, tmp_path / "a.ckpt", words=(folder,), epochs=1), said.append)
    assert "training: 51 clips (yes 14, down 13, no 12, up 12)" in said
    assert made.data.endswith("words from mine")


def test_own_words_alone_will_do(tmp_path):
    folder = own_words(tmp_path / "mine", yes=["ann", "bob"], no=["ann", "bob"])
    (folder / "validation_list.txt").write_text("yes/bob_nohash_0.wav\nno/bob_nohash_0.wav\n")
    said = []
    train(options(None, tmp_path / "a.ckpt", words=(folder,), epochs=1), said.append)
    assert "few training clips: yes 1, no 1; 50 of each, from ten people or more, are wanted" in said
    assert "all training clips are of one speaker (ann); others will be understood poorly" in said


def test_a_checkpoint_knows_which_clips_it_learnt_wherever_they_move(tmp_path):
    folder = own_words(tmp_path / "mine", yes=["ann", "bob", "clara"], no=["ann", "bob", "clara"])
    (folder / "validation_list.txt").write_text("yes/bob_nohash_0.wav\nno/bob_nohash_0.wav\n")
    tested = folder / "testing_list.txt"
    tested.write_text("yes/clara_nohash_0.wav\nno/clara_nohash_0.wav\n")
    first, later = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
    train(options(None, first, words=(folder,), epochs=1), quietly)
    assert evaluate_model(first, None, "testing", (), words=(folder,)).told == ()
    for word in ("yes", "no"):
        (folder / word / "ann_nohash_0.wav").rename(folder / word / "dora_nohash_0.wav")
        tiny.write(folder / word / "emil_nohash_0.wav", tiny.tone(word, seed=7))
    tested.write_text("yes/clara_nohash_0.wav\nno/dora_nohash_0.wav\nyes/dora_nohash_0.wav\n")
    train(options(None, later, words=(folder,), epochs=1, init=first), quietly)
    for checkpoint in (first, later):
        [told] = evaluate_model(checkpoint, None, "testing", (), words=(folder,)).told
        assert "was trained on 2 of these 3 clips, so the figures flatter it" in told
    told = list[str]()
    export_checkpoint(first, tmp_path / "both.pt", None, None, (), words=(folder,), second=later, say=told.append)
    flattered = [note.partition(", so the figures")[0] for note in told if "flatter" in note]
    assert flattered == [f"{checkpoint}: was trained on 2 of these 3 clips" for checkpoint in (first, later)]


def test_own_words_without_any_to_validate_on_are_refused(tmp_path):
    folder = own_words(tmp_path / "mine", yes=["ann"], no=["ann"])
    with pytest.raises(AudioError, match=r"mine: no validation clips; record more, or write validation_list\.txt"):
        train(options(None, tmp_path / "a.ckpt", words=(folder,)), quietly)


def test_without_a_data_set_noise_must_be_named(tmp_path):
    folder = own_words(tmp_path / "mine", yes=["ann", "bob"], no=["ann", "bob"])
    (folder / "validation_list.txt").write_text("yes/bob_nohash_0.wav\nno/bob_nohash_0.wav\n")
    with pytest.raises(AudioError, match=r"^name recordings of noise with --noise"):
        train(options(None, tmp_path / "a.ckpt", words=(folder,), labels="yes,no,_silence_"), quietly)


def test_nothing_to_train_on_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--data, or a folder of --words") as failure:
        train(options(None, tmp_path / "a.ckpt"), quietly)
    assert failure.value.exit_code == 2


@pytest.mark.parametrize("kind", ["checkpoint", "artefact"])
def test_a_teacher_is_a_checkpoint_or_an_artefact_whatever_the_order_of_its_labels(learnt, small, tmp_path, kind):
    data, before, path = learnt
    if kind == "artefact":
        path = tmp_path / "teacher.onnx"
        export(before, path, torch.zeros(1, 16_000))
    teacher = load_teacher(path, ("no", "yes"), torch.device("cpu"))
    windows = torch.randn(3, 16_000, generator=torch.Generator().manual_seed(0)) * 0.1
    with torch.inference_mode():
        expected = before.network()(windows).exp().flip(1)
    torch.testing.assert_close(teacher(windows), expected, rtol=0, atol=1e-4 if kind == "artefact" else 5e-3)  # 16 bits
    taught = {"model": "dstcn-tiny", "labels": "no,yes", "epochs": 1}
    with_teacher, without = (
        train(options(data, tmp_path / f"{i}.ckpt", **taught, teachers=by), quietly)
        for i, by in enumerate(((path,), ()))
    )
    assert not same(with_teacher.state, without.state)


def test_a_teacher_leaves_all_threads_to_the_training(learnt, tmp_path):
    _, before, _ = learnt
    export(before, tmp_path / "teacher.pt", torch.zeros(1, 16_000))
    torch.set_num_threads(2)
    load_teacher(tmp_path / "teacher.pt", ("yes", "no"), torch.device("cpu"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert threads == 2


def test_several_teachers_say_the_mean_of_what_each_says(learnt, exported):
    _, _, path = learnt
    _, _, artefact = exported
    windows = torch.randn(3, 16_000, generator=torch.Generator().manual_seed(0)) * 0.1
    cpu = torch.device("cpu")
    one, other = (load_teacher(file, ("yes", "no"), cpu)(windows) for file in (path, artefact))
    assert not torch.allclose(one, other)
    both = load_teachers((path, artefact), ("yes", "no"), cpu)(windows)
    torch.testing.assert_close(both, (one + other) / 2)


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        ("yes,up", "does not know up and also knows no"),
        ("yes,no,up", "needs the same labels; it does not know up$"),
    ],
)
def test_a_teacher_of_other_labels_is_refused(learnt, tmp_path, labels, complaint):
    data, _, path = learnt
    with pytest.raises(ConfigError, match=complaint):
        train(options(data, tmp_path / "a.ckpt", labels=labels, teachers=(path,), epochs=1), quietly)


def test_distillation_is_the_cross_entropy_with_what_the_teacher_says():
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    taught = torch.randn(8, 5, generator=torch.Generator().manual_seed(1)).softmax(1)
    expected = F.cross_entropy(logits, taught)
    torch.testing.assert_close(cross_entropy(logits.log_softmax(1), taught).mean(), expected)


def test_a_teacher_is_not_believed_where_it_hears_a_keyword_that_is_not_there():
    keywords, silence = torch.tensor([True, True, False, False]), torch.tensor([False, False, False, True])
    said = torch.tensor([[0.5, 0.2, 0.2, 0.1]])
    for target, believed in ((0, [0.5, 0.2, 0.2, 0.1]), (2, [0.0, 0.0, 0.9, 0.1])):
        torch.testing.assert_close(corrected(said, torch.tensor([target]), keywords, silence), torch.tensor([believed]))


def test_a_teacher_is_not_believed_where_it_takes_music_for_speech():
    keywords, silence = torch.tensor([True, True, False, False]), torch.tensor([False, False, False, True])
    believed = corrected(torch.tensor([[0.5, 0.2, 0.2, 0.1]]), torch.tensor([3]), keywords, silence)
    torch.testing.assert_close(believed, torch.tensor([[0.0, 0.0, 0.0, 1.0]]))


def test_who_learns_from_a_teacher_learns_none_of_its_false_accepts(data, monkeypatch, tmp_path):
    wanted = []

    def seen(log_probs, of_it):
        wanted.append(of_it)
        return cross_entropy(log_probs, of_it)

    sure_of_yes = torch.tensor([1.0, 0.0, 0.0, 0.0])
    monkeypatch.setattr("kwsd.training.run.cross_entropy", seen)
    monkeypatch.setattr(
        "kwsd.training.train.load_teachers", lambda *_: lambda windows: sure_of_yes.expand(len(windows), 4)
    )
    labels = "yes,no,_unknown_,_silence_"
    train(options(data, tmp_path / "a.ckpt", model="dstcn-tiny", labels=labels, epochs=1, teachers=(data,)), quietly)
    rows = torch.cat(wanted)
    nothing_said = rows[:, 2:].amax(1) > 0.5
    assert nothing_said.any() and (rows[~nothing_said, 0] > 0.5).all(), "of words it is believed, even a wrong one"
    assert (rows[nothing_said, :2] < 0.05).all()


def test_the_figures_of_every_epoch_and_their_curves_lie_beside_the_checkpoint(data, small, tmp_path):
    train(options(data, tmp_path / "a.ckpt", **small, epochs=2), quietly)
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert len(lines) == 3
    assert 0 <= float(lines[2].split(",")[5]) <= 1, "there was talk, so it was spotted"
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
