"""One network trained by several processes: real ones, started by torchrun, against one alone."""

import dataclasses
import subprocess
import sys
import warnings

import numpy as np
import pytest
import tiny_speech_commands as tiny
import torch
from running import clean_environment, free_port
from torch import nn

from kwsd.errors import ConfigError, KwsdError
from kwsd.training.checkpoint import load_checkpoint
from kwsd.training.processes import ProcessGroup, SyncedBatchNorm, join_process_group

EPOCHS = 2
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data, talk and a recipe small enough to train on twice."""
    folder = tmp_path_factory.mktemp("processes")
    tiny.make(folder / "data")
    tiny.write(folder / "talk/talk.wav", np.random.default_rng(1).normal(0, 0.1, 40_000))
    (folder / "recipe.yaml").write_text(
        f"model: dstcn-tiny\nlabels: yes,no,_unknown_,_silence_\nepochs: {EPOCHS}\nbatch: 25\nmixup: 0.2\n"
        "mixed_precision: false\noptimiser: sgd\nlearning_rate: 0.05\n"  # Adam makes steps of what rounding leaves
    )
    return folder


def trained(folder, name, *launcher):
    """The checkpoint, the losses of all epochs, and what was said."""
    command = [
        *launcher, "-m", "kwsd", "train", "--recipe", "recipe.yaml", "--data", "data", "--negatives", "talk",
        "--device", "cpu", "--out", f"{name}.ckpt",
    ]  # fmt: skip
    environment = clean_environment(XDG_CACHE_HOME=str(folder / f"cache-{name}"), OMP_NUM_THREADS="1")
    result = subprocess.run(
        command, check=False, cwd=folder, env=environment, capture_output=True, text=True, timeout=110
    )
    assert result.returncode == 0, result.stderr
    rows = [line.split(",") for line in (folder / f"{name}.csv").read_text().splitlines()[1:]]
    return load_checkpoint(folder / f"{name}.ckpt"), [float(row[2]) for row in rows], result.stderr


@pytest.fixture(scope="module")
def alone(folder):
    return trained(folder, "alone", sys.executable)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_come_to_the_loss_and_weights_of_one_on_the_same_batches(folder, alone, processes):
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
    made, losses, said = trained(folder, f"group{processes}", *torchrun)
    expected, expected_losses, _ = alone
    assert losses == pytest.approx(expected_losses, abs=1e-4)
    assert len(losses) == made.epoch == EPOCHS
    assert said.count("epoch 1/2: loss") == 1, "one of them speaks"
    for name, weights in made.state.items():
        torch.testing.assert_close(weights, expected.state[name], rtol=0, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_who_is_left_alone_says_so_in_one_line(folder):
    command = [
        sys.executable, "-m", "kwsd", "train", "--recipe", "recipe.yaml", "--epochs", "10000", "--data", "data",
        "--device", "cpu", "--out", "left.ckpt",
    ]  # fmt: skip
    cache, port = str(folder / "cache-left"), str(free_port())
    environment = clean_environment(
        XDG_CACHE_HOME=cache, OMP_NUM_THREADS="1", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port
    )
    first, second = (
        subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    )
    with first, second:
        for line in first.stderr:
            if line.startswith("kwsd: epoch 2/"):
                break
        second.kill()
        rest = first.stderr.read()
    assert first.returncode == 69, rest
    assert rest.splitlines()[-1] == "kwsd: process 0 of 2: another one is gone; its line says why"


@pytest.mark.parametrize("other", ["none", "of another epoch"])
def test_processes_that_would_go_on_from_different_checkpoints_are_refused(other, folder, alone, tmp_path):
    command = [
        sys.executable, "-m", "kwsd", "train", "--recipe", folder / "recipe.yaml", "--data", folder / "data",
        "--device", "cpu", "--epochs", str(EPOCHS + 1), "--resume", "--out", "a.ckpt",
    ]  # fmt: skip
    machines = [tmp_path / "first", tmp_path / "second"]
    for machine in machines:
        machine.mkdir()
    alone[0].save(machines[0] / "a.ckpt")
    if other != "none":
        dataclasses.replace(alone[0], epoch=EPOCHS - 1).save(machines[1] / "a.ckpt")
    cache, port = str(folder / "cache-alone"), str(free_port())
    environment = clean_environment(
        XDG_CACHE_HOME=cache, OMP_NUM_THREADS="1", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port
    )
    processes = [
        subprocess.Popen(
            command,
            cwd=machine,
            env={**environment, "RANK": rank, "LOCAL_RANK": "0"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, machine in zip("01", machines, strict=True)
    ]
    for process in processes:
        _, said = process.communicate(timeout=100)
        complaints = [line for line in said.splitlines() if line.startswith("kwsd: ")]
        assert complaints == [
            "kwsd: a.ckpt: is not the same for all processes; copy that of the first one to every machine"
        ]
        assert process.returncode == 78


def test_one_process_is_a_group_of_one_whatever_else_stands_in_the_environment():
    with join_process_group(CPU, {"WORLD_SIZE": "4"}) as group:
        assert group == ProcessGroup(0, 1, 0)
        assert group.leads and group.all_have("it")
        assert torch.equal(group.shard(torch.arange(5)), torch.arange(5))
        network = nn.Sequential(nn.BatchNorm2d(1))
        group.synchronise(network)
        assert type(network[0]) is nn.BatchNorm2d


@pytest.mark.parametrize("wrong", [{}, {"RANK": "0", "WORLD_SIZE": "two", "LOCAL_RANK": "0"}])
def test_half_of_what_torchrun_says_is_refused(wrong):
    with (
        pytest.raises(ConfigError, match="start it by torchrun"),
        join_process_group(CPU, {"MASTER_ADDR": "127.0.0.1"} | wrong),
    ):
        pass


@pytest.mark.parametrize("size", [2, 3, 7])
def test_every_window_is_of_one_process_share(size):
    batch = torch.arange(25)
    shares = [ProcessGroup(rank, size).shard(batch) for rank in range(size)]
    assert sorted(torch.cat(shares).tolist()) == batch.tolist()
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_others_that_cannot_be_reached_are_said_in_one_line():
    nowhere = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "no port"}
    with (
        pytest.raises(KwsdError, match=r"process 1 of 2: cannot reach the others") as failure,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in nowhere.items():
            patch.setenv(name, value)
        with join_process_group(CPU):
            pass
    assert failure.value.exit_code == 69
    assert "\n" not in str(failure.value)


@pytest.fixture
def single(tmp_path):
    """A process group of one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("training", [True, False])
def test_batch_normalisation_over_processes_is_the_librarys_own(single, training):
    generator = torch.Generator().manual_seed(0)
    plain, synced = nn.BatchNorm2d(3), SyncedBatchNorm(3)
    for norm in (plain, synced):
        norm.load_state_dict({
            "weight": torch.tensor([1.0, 2.0, 0.5]), "bias": torch.tensor([0.0, 1.0, -1.0]),
            "running_mean": torch.tensor([-8.0, 0.1, 3.0]), "running_var": torch.tensor([9.0, 1.0, 0.2]),
            "num_batches_tracked": torch.tensor(5),
        })  # fmt: skip
        norm.train(training)
    x = (torch.randn(4, 3, 2, 5, generator=generator) * 3 - 8).requires_grad_()
    other = x.detach().clone().requires_grad_()
    weights = torch.randn(4, 3, 2, 5, generator=generator)
    for norm, batch in ((plain, x), (synced, other)):
        (norm(batch) * weights).sum().backward()
    torch.testing.assert_close(synced(other), plain(x), rtol=0, atol=1e-4)
    torch.testing.assert_close(other.grad, x.grad, rtol=0, atol=1e-4)
    torch.testing.assert_close(synced.weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dict(synced.state_dict()), dict(plain.state_dict()), rtol=1e-4, atol=1e-4)
