"""`kwsd export`: the artefact says what it is, equals the trained network, and no other is ever left behind."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tiny_speech_commands as tiny
import torch
from test_checkpoint import checkpoint
from torch import nn

from kwsd.artefact import read_info
from kwsd.cli import dispatch
from kwsd.errors import ConfigError, KwsdError, ModelError
from kwsd.networks import NETWORKS
from kwsd.spotter import load_spotter
from kwsd.training import export as exporting
from kwsd.training.export import export, parse_thresholds, weights_hash
from kwsd.training.labels import ALL

CLIPS = torch.randn(3, 16_000, generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def trained(model="matchboxnet", labels=("yes", "no", "_silence_"), seed=0):
    """A checkpoint of a network that has seen a little noise."""
    torch.manual_seed(seed)
    network = NETWORKS[model](len(labels))
    network.train()(CLIPS)
    state = network.state_dict()
    return checkpoint(model=model, labels=labels, state=state, best_state=state, data="noise")


# --- what it says ---


def test_the_metadata_has_every_field(tmp_path):
    path = tmp_path / "a.pt"
    export(trained(), path, CLIPS, thresholds={"yes": 0.8})
    with zipfile.ZipFile(path) as archive:
        metadata = json.loads(archive.read(_member(archive)))
    assert metadata == {
        "format": 1,
        "architecture": "matchboxnet",
        "labels": ["yes", "no", "_silence_"],
        "sample_rate": 16_000,
        "window": 16_000,
        "features": {
            "mels": 40, "frame": 480, "frame_hop": 160, "fft": 512, "lowest_hz": 20.0, "highest_hz": 7600.0,
        },
        "thresholds": {"yes": 0.8},
        "figures": [],
        "data": "noise; kwsd train",
        "licence": exporting.LICENCE,
        "weights_sha256": weights_hash(trained().best_state),
    }  # fmt: skip


def _member(archive):
    [name] = [name for name in archive.namelist() if name.endswith("/extra/kwsd.json")]
    return name


def test_raw_samples_have_no_features(tmp_path):
    assert export(trained("simplenet"), tmp_path / "a.pt", CLIPS).features is None


def test_the_metadata_is_read_without_importing_torch(tmp_path):
    info = export(trained(), tmp_path / "a.pt", CLIPS)
    script = """
import sys; from pathlib import Path; from kwsd.artefact import read_info
print(read_info(Path(sys.argv[1])).id, "torch" in sys.modules, "torchaudio" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", script, tmp_path / "a.pt"], check=True, capture_output=True, text=True)
    assert run.stdout.split() == [info.id, "False", "False"]


def test_the_hash_is_of_names_and_weights():
    state = trained().best_state
    assert weights_hash(state) == weights_hash(dict(reversed(state.items())))
    assert weights_hash(state) != weights_hash(trained(seed=1).best_state)
    assert weights_hash(state) != weights_hash({f"x{name}": weights for name, weights in state.items()})


def test_exporting_twice_gives_the_same_id_and_other_weights_another(tmp_path):
    one, same, other = (export(trained(seed=s), tmp_path / "a.pt", CLIPS).id for s in (0, 0, 1))
    assert one == same != other


# --- what it does ---


@pytest.mark.parametrize("model", NETWORKS)
def test_the_artefact_equals_the_eager_network(tmp_path, model):
    made = trained(model)
    export(made, tmp_path / "a.pt", CLIPS)
    assert read_info(tmp_path / "a.pt").labels == made.labels
    with torch.inference_mode():
        eager = made.network()(CLIPS).exp().numpy()
    np.testing.assert_allclose(load_spotter(tmp_path / "a.pt", "cpu").score(CLIPS.numpy()), eager, rtol=0, atol=1e-5)


def test_an_exported_dropout_drops_nothing(tmp_path):
    export(trained(), tmp_path / "a.pt", CLIPS)
    spotter = load_spotter(tmp_path / "a.pt", "cpu")
    assert np.array_equal(spotter.score(CLIPS.numpy()), spotter.score(CLIPS.numpy()))


@pytest.mark.parametrize("before", [b"an older artefact", None])
@pytest.mark.parametrize("change", [1e-2, float("nan")])
def test_a_file_that_differs_is_refused_and_none_is_left(tmp_path, monkeypatch, before, change):
    honest = exporting.frozen

    def corrupted(network):
        changed = NETWORKS["simplenet"](3)
        changed.load_state_dict(network.state_dict())
        with torch.no_grad():
            changed.linear3.bias[0] += change
        return honest(changed)

    monkeypatch.setattr(exporting, "frozen", corrupted)
    path = tmp_path / "a.pt"
    if before:
        path.write_bytes(before)
    with pytest.raises(ModelError, match=r"differs from the trained one|log-probabilities"):
        export(trained("simplenet"), path, CLIPS)
    assert [p.name for p in tmp_path.iterdir()] == (["a.pt"] if before else [])
    assert not before or path.read_bytes() == before


@pytest.mark.parametrize("change", [0.01, float("nan")])
def test_a_difference_on_a_single_clip_is_found(tmp_path, monkeypatch, change):
    class Elsewhere(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network
            self.change = change

        def forward(self, windows: torch.Tensor) -> torch.Tensor:
            log_probs = self.network(windows)  # (batch, 3)
            odd = log_probs + torch.tensor([self.change, 0.0, 0.0])  # (batch, 3)
            return torch.where(windows[:, :1] > 0.9, odd, log_probs)  # (batch, 3)

    honest = exporting.frozen
    monkeypatch.setattr(exporting, "frozen", lambda network: honest(Elsewhere(network)))
    clips = torch.zeros(600, 16_000)  # more than are compared at once
    export(trained("simplenet"), tmp_path / "a.pt", clips)
    clips[577, 0] = 1.0
    with pytest.raises(ModelError, match="differs"):
        export(trained("simplenet"), tmp_path / "b.pt", clips)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(KwsdError, match=r"a\.pt: cannot be written") as failure:
        export(trained("simplenet"), tmp_path / "file/a.pt", CLIPS)
    assert failure.value.exit_code == 74


def test_a_disk_that_is_full_is_named_by_the_artefacts_own_name(tmp_path, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0\nand a trace")

    monkeypatch.setattr(torch.jit, "save", full)
    with pytest.raises(KwsdError, match=r"/a\.pt: cannot be written \(PytorchStreamWriter failed") as failure:
        export(trained("simplenet"), tmp_path / "a.pt", CLIPS)
    assert failure.value.exit_code == 74
    assert list(tmp_path.iterdir()) == []


# --- the command ---


def test_with_data_it_stores_the_accuracy_it_measured(tmp_path, capsys):
    data = tiny.make(tmp_path / "data")
    trained().save(tmp_path / "a.ckpt")
    code = dispatch(["export", f"{tmp_path}/a.ckpt", "-o", f"{tmp_path}/a.pt", "--data", str(data)])
    assert code == 0
    [figure] = read_info(tmp_path / "a.pt").figures
    assert dispatch(["eval", "--model", f"{tmp_path}/a.pt", "--data", str(data), "--json"]) == 0
    overall = json.loads(capsys.readouterr().out)["overall"]
    assert (figure.value, figure.low, figure.high) == pytest.approx(
        (overall["accuracy"], overall["low"], overall["high"]), abs=1e-4
    )
    assert figure.command == "kwsd eval --model a.pt --data DATA"


def test_without_data_it_compares_on_the_bundled_recording_and_stores_no_figure(tmp_path, capsys):
    trained().save(tmp_path / "a.ckpt")
    assert dispatch(["export", f"{tmp_path}/a.ckpt", "-o", f"{tmp_path}/a.pt", "--threshold", "0.9"]) == 0
    info = read_info(tmp_path / "a.pt")
    assert info.figures == ()
    assert info.thresholds == {"yes": 0.9, "no": 0.9}
    assert info.id in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "thresholds"),
    [
        ((), {}),
        (("0.8",), {"yes": 0.8, "no": 0.8}),
        (("no=0.7", "0.8"), {"yes": 0.8, "no": 0.7}),
        (("no=0.7",), {"no": 0.7}),
        (("_silence_=1",), {"_silence_": 1.0}),
    ],
)
def test_thresholds_are_for_all_words_or_one(given, thresholds):
    assert parse_thresholds(given, ("yes", "no", "_silence_")) == thresholds


@pytest.mark.parametrize(
    ("given", "code"), [("1.5", 2), ("-0.1", 2), ("nan", 2), ("no=", 2), ("0,8", 2), ("go=0.8", 78)]
)
def test_a_threshold_that_is_none_is_refused(given, code):
    with pytest.raises(ConfigError, match="--threshold") as failure:
        parse_thresholds((given,), ("yes", "no"))
    assert failure.value.exit_code == code


def test_labels_may_not_contradict_the_checkpoint(tmp_path):
    trained("simplenet").save(tmp_path / "a.ckpt")
    command = ["export", f"{tmp_path}/a.ckpt", "-o", f"{tmp_path}/a.pt", "--labels"]
    assert dispatch([*command, "yes,no,_silence_"]) == 0
    with pytest.raises(ConfigError, match="leave out --labels"):
        dispatch([*command, "no,yes,_silence_"])


# --- a bare SimpleNet, as the article saves it ---


class ArticleNet(nn.Module):
    """The same network, its layers called otherwise."""

    def __init__(self, outputs=35, hidden=128):
        super().__init__()
        self.fc1 = nn.Linear(16_000, hidden)
        self.fc2 = nn.Linear(hidden, 64)
        self.fc3 = nn.Linear(64, outputs)

    def forward(self, x):
        x = torch.relu(self.fc2(torch.relu(self.fc1(x))))
        return torch.log_softmax(self.fc3(x), -1)


def bare(tmp_path, network, *more):
    torch.save(network.state_dict(), tmp_path / "linear.h5")
    return dispatch(["export", f"{tmp_path}/linear.h5", "-o", f"{tmp_path}/a.pt", *more])


def test_a_bare_state_dict_becomes_an_artefact_whatever_its_layers_are_called(tmp_path):
    network = ArticleNet()
    assert bare(tmp_path, network, "--labels", "all") == 0
    spotter = load_spotter(tmp_path / "a.pt", "cpu")
    assert spotter.info.labels == ALL
    assert spotter.info.architecture == "simplenet"
    assert "linear.h5" in spotter.info.data
    assert spotter.info.licence == "unknown"
    with torch.inference_mode():
        eager = network(CLIPS).exp().numpy()
    np.testing.assert_allclose(spotter.score(CLIPS.numpy()), eager, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "labels", "complaint"),
    [
        (ArticleNet(3), (), "give all 3 in order with --labels"),
        (ArticleNet(3), ("--labels", "yes,no"), "2 labels for a network with 3 outputs"),
        (ArticleNet(3), ("--labels", "all"), "35 labels for a network with 3 outputs"),
        (ArticleNet(3, hidden=64), ("--labels", "yes,no,up"), "not SimpleNet's"),
        (nn.Linear(3, 3), ("--labels", "yes,no,up"), "not SimpleNet's"),
        (nn.ReLU(), ("--labels", "yes,no,up"), "neither a checkpoint of kwsd train nor a state dict"),
    ],
    ids=["no labels", "too few", "too many", "other sizes", "another network", "nothing"],
)
def test_a_bare_state_dict_that_cannot_be_understood_is_refused(tmp_path, network, labels, complaint):
    with pytest.raises(KwsdError, match=complaint) as failure:
        bare(tmp_path, network, *labels)
    assert failure.value.exit_code == 78
    assert not (tmp_path / "a.pt").exists()
