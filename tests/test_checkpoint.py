"""A checkpoint is written whole or not at all, and nothing that is no checkpoint is taken for one."""

import pickle

import pytest
import torch

from kwsd.errors import KwsdError, ModelError
from kwsd.networks import NETWORKS
from kwsd.training.checkpoint import FORMAT, Checkpoint, load_checkpoint


def checkpoint(epoch=1, **changed):
    """A SimpleNet that has not learnt anything."""
    torch.manual_seed(epoch)
    state = NETWORKS["simplenet"](2).state_dict()
    values = {
        "model": "simplenet", "labels": ("yes", "no"), "epoch": epoch, "state": state, "average_state": None,
        "best_state": state, "best_score": 0.5, "optimiser": {}, "recipe": {"epochs": 3}, "seed": 0,
        "command": "kwsd train", "data": "",
    }  # fmt: skip
    return Checkpoint(**(values | changed))


def test_what_is_saved_comes_back_and_needs_no_unpickling(tmp_path):
    path = tmp_path / "new/folder/a.ckpt"
    checkpoint().save(path)
    assert torch.load(path, weights_only=True)["labels"] == ("yes", "no")
    loaded = load_checkpoint(path)
    assert (loaded.model, loaded.labels, loaded.epoch, loaded.recipe) == ("simplenet", ("yes", "no"), 1, {"epochs": 3})
    for name, weights in checkpoint().state.items():
        assert torch.equal(loaded.state[name], weights)
    assert loaded.average_state is None
    assert list(path.parent.iterdir()) == [path]


def test_a_moving_average_comes_back_to_the_last_bit(tmp_path):
    average = {name: weights / 3 for name, weights in checkpoint().state.items()}
    checkpoint(average_state=average).save(tmp_path / "a.ckpt")
    loaded = load_checkpoint(tmp_path / "a.ckpt")
    assert loaded.average_state.keys() == average.keys()
    for name, weights in average.items():
        assert torch.equal(loaded.average_state[name], weights)
        assert not torch.equal(loaded.average_state[name], loaded.state[name])


def test_the_network_has_the_best_weights_and_not_the_last():
    best = {name: torch.zeros_like(weights) for name, weights in checkpoint().state.items()}
    network = checkpoint(best_state=best).network()
    assert not network.training
    assert not any(weights.any() for weights in network.parameters())


@pytest.mark.parametrize(
    ("failure", "becomes"),
    [
        (OSError(28, "No space left on device"), KwsdError),
        (RuntimeError("write failed"), KwsdError),
        (KeyboardInterrupt(), KeyboardInterrupt),  # Ctrl-C while writing
    ],
)
def test_a_checkpoint_half_written_leaves_the_one_before_and_nothing_else(tmp_path, monkeypatch, failure, becomes):
    path = tmp_path / "a.ckpt"
    checkpoint(1).save(path)

    def fail(_, file):
        file.write(b"half of it")
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail)
        with pytest.raises(becomes):
            checkpoint(2).save(path)
    assert load_checkpoint(path).epoch == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(KwsdError, match=r"a\.ckpt: cannot write the checkpoint") as failure:
        checkpoint().save(tmp_path / "file/a.ckpt")
    assert failure.value.exit_code == 74


class Trap:
    """Unpickled, it would print; loaded as a checkpoint, it must not."""

    def __reduce__(self):
        return print, ("unpickled!",)


def saved(content):
    def write(path):
        torch.save(content, path)

    return write


def raw(content):
    return lambda path: path.write_bytes(content)


def fields(*without, **changed):
    """What a checkpoint's file holds, without the weights, and without some of it."""
    content = checkpoint(state={}, best_state={}).__dict__ | changed
    return {name: value for name, value in content.items() if name not in without}


NO_CHECKPOINTS = {
    "empty": raw(b""),
    "text": raw(b"not a checkpoint at all\n"),
    "zeros": raw(bytes(500)),
    "opcodes": raw(b"\x80\x02\x85\x85R."),  # pops from an empty stack
    "zip": raw(b"PK\x03\x04 and no more"),
    "pickle": raw(pickle.dumps(Trap())),
    "trap": saved({"format": FORMAT, "model": Trap()}),
    "module": saved(torch.nn.Linear(2, 2)),
    "list": saved([1, 2]),
    "state dict": saved({"weight": torch.zeros(2)}),
    "past": saved(fields("average_state", format=1)),
    "future": saved(fields(format=FORMAT + 1)),
    "unknown network": saved(fields(model="unheard-of")),
    "unhashable network": saved(fields(model=["simplenet"])),
    "without labels": saved(fields("labels")),
    "without seed": saved(fields("seed")),
    "without average": saved(fields("average_state")),
    "with more": saved(fields() | {"more": 1}),
}


def test_the_fields_alone_are_what_a_checkpoint_has(tmp_path):
    saved(fields())(tmp_path / "a.ckpt")
    assert load_checkpoint(tmp_path / "a.ckpt").labels == ("yes", "no")


@pytest.mark.parametrize("name", NO_CHECKPOINTS)
def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path, capsys, name):
    path = tmp_path / "a.ckpt"
    NO_CHECKPOINTS[name](path)
    with pytest.raises(ModelError, match=r"a\.ckpt: ") as failure:
        load_checkpoint(path)
    assert failure.value.exit_code == 78
    assert "unpickled!" not in capsys.readouterr().out


def test_a_truncated_checkpoint_is_refused(tmp_path):
    path = tmp_path / "a.ckpt"
    checkpoint().save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelError, match="damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("place", [".", "nowhere.ckpt"])
def test_a_missing_checkpoint_is_no_input(tmp_path, place):
    with pytest.raises(ModelError) as failure:
        load_checkpoint(tmp_path / place)
    assert failure.value.exit_code == 66


def test_weights_of_another_network_are_a_clear_error():
    with pytest.raises(ModelError, match="do not fit this kwsd's dstcn-tiny"):
        checkpoint(model="dstcn-tiny").network()
    with pytest.raises(ModelError, match="do not fit"):
        checkpoint(labels=("yes", "no", "up")).network()
