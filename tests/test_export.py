"""`kwsd export`: the artefact says what it is, equals the trained network, and no other is ever left behind."""

import json
import resource
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_speech_commands as tiny
import torch
from conftest import METADATA
from ears import Ears
from test_checkpoint import checkpoint
from test_networks import TRIED, keen, speech
from torch import nn

from kwsd.artefact import SEAL, read_info, sealed
from kwsd.audio_format import WINDOW
from kwsd.cli import dispatch
from kwsd.engines import load_spotter
from kwsd.errors import ConfigError, KwsdError, ModelError
from kwsd.networks import NETWORKS
from kwsd.training import export as exporting
from kwsd.training.checkpoint import SPEECH_COMMANDS
from kwsd.training.export import export, export_checkpoint, parse_thresholds, weights_hash
from kwsd.training.labels import ALL

MODELS = Path(__file__).parent.parent / "models"
CLIPS = torch.randn(3, 16_000, generator=torch.Generator().manual_seed(0)) * 0.1
WRITERS = {".pt": "_torchscript", ".onnx": "_onnx"}

either_format = pytest.mark.parametrize("suffix", [".pt", ".onnx"])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def trained(model="dstcn-tiny", labels=("yes", "no", "_silence_"), seed=0):
    """A checkpoint of a network that has seen a little noise, and whose normalisations are not all alike any more."""
    torch.manual_seed(seed)
    network = NETWORKS[model](len(labels))
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1 * torch.randn_like(weight) if weight.dim() == 1 else 0.0)
    network.train()(CLIPS)
    state = network.state_dict()
    return checkpoint(model=model, labels=labels, state=state, best_state=state, data="noise")


def test_a_checkpoint_is_not_overwritten_with_its_own_export(tmp_path):
    trained().save(tmp_path / "a.ckpt")
    (tmp_path / "b.pt").symlink_to(tmp_path / "a.ckpt")
    before = (tmp_path / "a.ckpt").read_bytes()
    for out in ("a.ckpt", "b.pt"):
        with pytest.raises(ConfigError, match=f"{out}: is the checkpoint itself; name another file with -o"):
            dispatch(["export", f"{tmp_path}/a.ckpt", "-o", f"{tmp_path}/{out}"])
    assert (tmp_path / "a.ckpt").read_bytes() == before


@pytest.mark.parametrize("where", [0.1, 0.3, 0.5, 0.7, 0.9, 0.999])
def test_an_onnx_artefact_of_which_a_byte_is_another_is_refused(tmp_path, where):
    path = tmp_path / "a.onnx"
    export(trained(), path, CLIPS)
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"a\.onnx: .*(damaged|not a model|name a file that kwsd export made)"):
        read_info(path)


def test_the_shipped_onnx_artefacts_have_a_checksum():
    shipped = sorted(MODELS.glob("*.onnx"))
    assert shipped
    for path in shipped:
        content = path.read_bytes()
        assert SEAL in content[-90:] and sealed(content[: -len(sealed(b""))]) == content


def test_an_onnx_artefact_without_a_checksum_is_read_as_before(tmp_path):
    path = tmp_path / "a.onnx"
    export(trained(), path, CLIPS)
    path.write_bytes(path.read_bytes()[: -len(sealed(b""))])
    assert read_info(path).architecture == "dstcn-tiny"


def test_the_command_says_from_which_scores_words_count(tmp_path, capsys):
    trained().save(tmp_path / "a.ckpt")
    assert dispatch(["export", f"{tmp_path}/a.ckpt", "-o", f"{tmp_path}/a.onnx"]) == 0
    assert "words count from a score of 0.8; --threshold says otherwise" in capsys.readouterr().err
    assert dispatch(["export", f"{tmp_path}/a.ckpt", "-o", f"{tmp_path}/a.onnx", "--threshold", "no=0.6"]) == 0
    assert "words count from a score of no 0.6, all others 0.8;" in capsys.readouterr().err


# --- what it says ---


@either_format
def test_the_metadata_has_every_field(tmp_path, suffix):
    made, path = trained(), tmp_path / f"a{suffix}"
    export(made, path, CLIPS, thresholds={"yes": 0.8})
    assert json.loads(_metadata(path)) == {
        "format": 1,
        "architecture": "dstcn-tiny",
        "labels": ["yes", "no", "_silence_"],
        "sample_rate": 16_000,
        "window": 16_000,
        "features": {
            "mels": 40, "frame": 480, "frame_hop": 160, "fft": 512, "lowest_hz": 20.0, "highest_hz": 7600.0,
        },
        "step": 160,
        "thresholds": {"yes": 0.8},
        "figures": [],
        "data": "noise; kwsd train",
        "licence": SPEECH_COMMANDS,
        "weights_sha256": weights_hash(made.best_state),
    }  # fmt: skip


def _metadata(path):
    if path.suffix == ".onnx":
        [found] = [entry.value for entry in onnx.load(path).metadata_props if entry.key == "kwsd.json"]
        return found
    with zipfile.ZipFile(path) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("/extra/kwsd.json")]
        return archive.read(name)


@either_format
def test_raw_samples_have_no_features_and_are_taken_by_whole_windows_only(tmp_path, suffix):
    info = export(trained("simplenet"), tmp_path / f"a{suffix}", CLIPS)
    assert info.features is None
    assert info.step is None


@either_format
def test_the_metadata_is_read_without_importing_torch(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    info = export(trained(), path, CLIPS)
    script = """
import sys; from pathlib import Path; from kwsd.artefact import read_info
print(read_info(Path(sys.argv[1])).id, "torch" in sys.modules, "torchaudio" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", script, path], check=True, capture_output=True, text=True)
    assert run.stdout.split() == [info.id, "False", "False"]


def test_the_hash_is_of_names_and_weights():
    state = trained().best_state
    assert weights_hash(state) == weights_hash(dict(reversed(state.items())))
    assert weights_hash(state) != weights_hash(trained(seed=1).best_state)
    assert weights_hash(state) != weights_hash({f"x{name}": weights for name, weights in state.items()})


def test_the_same_weights_have_the_same_id_in_either_format_and_others_another(tmp_path):
    made = trained("simplenet")
    one, same = (export(made, tmp_path / name, CLIPS).id for name in ("a.pt", "a.onnx"))
    assert one == same != export(trained("simplenet", seed=1), tmp_path / "a.pt", CLIPS).id


# --- what it does ---


@either_format
@pytest.mark.parametrize("model", TRIED)
def test_the_artefact_equals_the_eager_network(tmp_path, model, suffix):
    made, path = trained(model), tmp_path / f"a{suffix}"
    export(made, path, CLIPS)
    assert read_info(path).labels == made.labels
    with torch.inference_mode():
        eager = made.network()(CLIPS).exp().numpy()
    np.testing.assert_allclose(load_spotter(path, "cpu").score(CLIPS.numpy()), eager, rtol=0, atol=1e-5)


@either_format
def test_an_exported_dropout_drops_nothing(tmp_path, suffix):
    export(trained(), tmp_path / f"a{suffix}", CLIPS)
    spotter = load_spotter(tmp_path / f"a{suffix}", "cpu")
    assert np.array_equal(spotter.score(CLIPS.numpy()), spotter.score(CLIPS.numpy()))


@pytest.fixture(scope="module", params=[".pt", ".onnx"])
def keen_pair(request, tmp_path_factory):
    """A network whose answers change from window to window, and its artefact, loaded."""
    network = keen("dstcn-tiny")
    state = {name: value.clone() for name, value in network.state_dict().items()}
    path = tmp_path_factory.mktemp("keen") / f"a{request.param}"
    labels = ("yes", "no", "up", "down", "_silence_")
    export(checkpoint(model="dstcn-tiny", labels=labels, state=state, best_state=state), path, CLIPS)
    return network, load_spotter(path, "cpu")


@pytest.mark.parametrize("streams", [1, 3, 6])
@pytest.mark.parametrize("hops", [1, 3])
@pytest.mark.parametrize("hop", [160, 320, 1600])
def test_an_artefact_advanced_hop_by_hop_equals_the_eager_network_on_whole_windows(keen_pair, streams, hops, hop):
    network, spotter = keen_pair
    sound = speech(streams, WINDOW + 2 * hops * hop)
    with torch.inference_mode():
        expected = torch.stack([network(window) for window in sound.unfold(1, WINDOW, hop).unbind(1)], 1).numpy()
    states, everyone = spotter.states(streams), np.arange(streams)
    answers = [spotter.begin(sound[:, :WINDOW].contiguous().numpy(), states, everyone)[:, None]]
    for part in sound[:, WINDOW:].split(hops * hop, 1):
        answers.append(spotter.advance(part.contiguous().numpy(), states, everyone, hops))
    assert np.ptp(expected, axis=1).max() > 0.01, "the windows must differ for this to say anything"
    np.testing.assert_allclose(np.log(np.concatenate(answers, 1)), expected, rtol=0, atol=1e-4)


def test_a_stream_begun_or_advanced_leaves_the_states_of_the_others_alone(keen_pair):
    _, spotter = keen_pair
    sound = speech(4, WINDOW + 2 * 1600).numpy()
    first, second, third = (np.ascontiguousarray(sound[:, at : at + WINDOW]) for at in (0, 1600, 3200))
    states = spotter.states(4)
    spotter.begin(first, states, np.arange(4))
    some, others = np.array([0, 2]), np.array([1, 3])
    kept = states[others]
    spotter.advance(second[some, -1600:], states, some, 1)
    assert (states[others] == kept).all()
    spotter.begin(second[others], states, others)
    posteriors = spotter.advance(third[:, -1600:].copy(), states, np.arange(4), 1)[:, 0]
    np.testing.assert_allclose(posteriors, spotter.score(third), rtol=0, atol=1e-5)


@either_format
@pytest.mark.parametrize("before", [b"an older artefact", None])
@pytest.mark.parametrize("change", [1e-2, float("nan")])
def test_a_file_that_differs_is_refused_and_none_is_left(tmp_path, monkeypatch, before, change, suffix):
    honest = getattr(exporting, WRITERS[suffix])

    def corrupted(network, info, second, path):
        changed = NETWORKS["simplenet"](3)
        changed.load_state_dict(network.state_dict())
        with torch.no_grad():
            changed.linear3.bias[0] += change
        return honest(changed, info, second, path)

    monkeypatch.setattr(exporting, WRITERS[suffix], corrupted)
    path = tmp_path / f"a{suffix}"
    if before:
        path.write_bytes(before)
    with pytest.raises(ModelError, match=r"differs from the trained one|log-probabilities"):
        export(trained("simplenet"), path, CLIPS)
    assert [p.name for p in tmp_path.iterdir()] == ([path.name] if before else [])
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


@either_format
def test_a_place_that_cannot_be_written_is_named(tmp_path, suffix):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(KwsdError, match=rf"a\{suffix}: cannot be written") as failure:
        export(trained("simplenet"), tmp_path / f"file/a{suffix}", CLIPS)
    assert failure.value.exit_code == 74


def test_a_disk_that_is_full_is_named_by_the_artefacts_own_name_and_nothing_is_left_on_it(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(KwsdError, match=r"/a\.pt: cannot be written \(") as failure:
            export(trained("simplenet"), tmp_path / "a.pt", CLIPS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert failure.value.exit_code == 74
    assert list(tmp_path.iterdir()) == []


# --- a file in ONNX that is not what it should be ---


@pytest.fixture(scope="module")
def in_onnx(tmp_path_factory):
    """The bytes of an artefact in ONNX."""
    path = tmp_path_factory.mktemp("onnx") / "a.onnx"
    export(trained(), path, CLIPS)
    return path.read_bytes()


def refused(content, path, error, device="cpu"):
    """What loading it says, in one line, with the file's name."""
    path.write_bytes(content)
    with pytest.raises(error) as failure:
        load_spotter(path, device)
    complaint = str(failure.value)
    assert str(path) in complaint and "\n" not in complaint
    return complaint, failure.value.exit_code


@pytest.mark.parametrize("kept", [0, 1, 2, 3, 4, 100, 0.25, 0.5, 0.999])
def test_onnx_cut_off_anywhere_is_refused(tmp_path, capfd, in_onnx, kept):
    size = kept if isinstance(kept, int) else int(kept * len(in_onnx))
    complaint, code = refused(in_onnx[:size], tmp_path / "a.onnx", ModelError)
    assert "truncated or damaged" in complaint or "is not a model" in complaint
    assert code == 78
    assert capfd.readouterr() == ("", ""), "the runtime said something of its own"


def test_onnx_without_metadata_is_refused(tmp_path, in_onnx):
    model = onnx.load_model_from_string(in_onnx)
    del model.metadata_props[:]
    complaint, code = refused(model.SerializeToString(), tmp_path / "a.onnx", ModelError)
    assert "is ONNX without kwsd.json; name a file that kwsd export made" in complaint
    assert code == 78


def test_onnx_whose_metadata_cannot_be_read_is_refused(tmp_path, in_onnx):
    model = onnx.load_model_from_string(in_onnx)
    model.metadata_props[0].value = "{"
    del model.metadata_props[1:]  # the checksum
    complaint, _ = refused(model.SerializeToString(), tmp_path / "a.onnx", ModelError)
    assert "its kwsd.json cannot be read" in complaint


def test_onnx_on_a_gpu_is_refused(tmp_path, in_onnx):
    complaint, code = refused(in_onnx, tmp_path / "a.onnx", ConfigError, device="cuda")
    assert "device: cuda" in complaint and "ONNX" in complaint
    assert code == 69


def test_onnx_runs_on_the_cpu_where_the_device_is_left_to_us(tmp_path, in_onnx):
    (tmp_path / "a.onnx").write_bytes(in_onnx)
    auto, cpu = (load_spotter(tmp_path / "a.onnx", device) for device in ("auto", "cpu"))
    assert np.array_equal(auto.score(CLIPS.numpy()), cpu.score(CLIPS.numpy()))


def test_what_is_in_a_file_decides_the_engine_and_not_its_name(tmp_path):
    made = trained("simplenet")
    for suffix, other in ((".pt", ".onnx"), (".onnx", ".pt")):
        export(made, tmp_path / f"a{suffix}", CLIPS)
        renamed = (tmp_path / f"a{suffix}").rename(tmp_path / f"renamed{other}")
        engines = {".pt": "TorchScript", ".onnx": "ONNX Runtime"}
        assert load_spotter(renamed, "cpu").engine == engines[suffix]


# --- metadata that promise more than the network can ---


def ears(path, step):
    """A network that takes whole windows, said to be one that can be advanced by `step` samples."""
    metadata = json.dumps(METADATA | {"step": step})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both formats are deprecated by torch
        if path.suffix == ".pt":
            torch.jit.save(torch.jit.script(Ears(3)), str(path), _extra_files={"kwsd.json": metadata})
            return
        torch.onnx.export(
            Ears(3).eval(), (torch.zeros(2, WINDOW),), str(path), dynamo=False, input_names=["samples"],
            output_names=["log_probs"], dynamic_axes={"samples": {0: "batch"}, "log_probs": {0: "batch"}},
        )  # fmt: skip
    model = onnx.load(path)
    model.metadata_props.add(key="kwsd.json", value=metadata)
    path.write_bytes(model.SerializeToString())


@either_format
def test_a_network_of_whole_windows_may_say_so(tmp_path, suffix):
    ears(tmp_path / f"a{suffix}", None)
    assert load_spotter(tmp_path / f"a{suffix}", "cpu").info.step is None


@either_format
@pytest.mark.parametrize("step", [160, 0, -160])
def test_a_network_that_cannot_be_advanced_as_its_metadata_say_is_refused(tmp_path, suffix, step):
    path = tmp_path / f"a{suffix}"
    ears(path, step)
    refused(path.read_bytes(), path, ModelError)


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
    ],
)
def test_thresholds_are_for_all_words_or_one(given, thresholds):
    assert parse_thresholds(given, ("yes", "no", "_silence_")) == thresholds


@pytest.mark.parametrize(
    ("given", "code"),
    [("1.5", 2), ("-0.1", 2), ("0", 2), ("nan", 2), ("no=", 2), ("0,8", 2), ("go=0.8", 78), ("_silence_=1", 78)],
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


def bare(tmp_path, network, *more, suffix=".pt"):
    torch.save(network.state_dict(), tmp_path / "linear.h5")
    return dispatch(["export", f"{tmp_path}/linear.h5", "-o", f"{tmp_path}/a{suffix}", *more])


@either_format
def test_a_bare_state_dict_becomes_an_artefact_whatever_its_layers_are_called(tmp_path, suffix):
    network = ArticleNet()
    assert bare(tmp_path, network, "--labels", "all", suffix=suffix) == 0
    spotter = load_spotter(tmp_path / f"a{suffix}", "cpu")
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


def test_an_unfinished_training_is_told(tmp_path):
    said = []
    checkpoint(1, recipe={"epochs": 4}).save(tmp_path / "a.ckpt")
    export_checkpoint(tmp_path / "a.ckpt", tmp_path / "a.onnx", None, None, (), say=said.append)
    assert said == [f"{tmp_path / 'a.ckpt'}: has 1 of its 4 epochs; kwsd train --resume goes on"]


def test_an_artefact_is_no_checkpoint(tmp_path):
    with pytest.raises(KwsdError, match=r"\.onnx: is an artefact; name the checkpoint it was made of"):
        export_checkpoint(MODELS / "commands.onnx", tmp_path / "a.pt", None, None, ())
