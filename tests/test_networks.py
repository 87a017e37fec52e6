"""The networks have the shapes they are named for, give log-probabilities, and survive scripting unchanged."""

import pytest
import torch
from torch import nn

from kwsd.features import MELS
from kwsd.networks import NETWORKS
from kwsd.networks.matchboxnet import MatchboxNet
from kwsd.networks.simplenet import SimpleNet
from kwsd.training.export import frozen
from kwsd.training.recipe import RECIPES


def windows(n, seed=0):
    return torch.randn(n, 16_000, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.fixture(params=NETWORKS)
def network(request):
    """Each network, its batch normalisation having seen a little, ready to score."""
    torch.manual_seed(0)
    made = NETWORKS[request.param](7)
    made.train()(windows(8, seed=1))
    return made.eval()


def test_simplenet_is_16000_128_64_35():
    layers = [module for module in SimpleNet().modules() if isinstance(module, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(16_000, 128), (128, 64), (64, 35)]


def test_simplenet_is_relu_between_and_log_softmax_at_the_end():
    network, x = SimpleNet(), windows(4)
    (w1, b1), (w2, b2), (w3, b3) = (
        (m.weight, m.bias) for m in network.modules() if isinstance(m, nn.Linear)
    )  # fmt: skip
    hidden = (x @ w1.T + b1).clamp(min=0) @ w2.T + b2
    logits = hidden.clamp(min=0) @ w3.T + b3
    torch.testing.assert_close(network(x), logits - logits.logsumexp(1, keepdim=True))


def test_simplenet_takes_the_data_loaders_channel_axis():
    network, x = SimpleNet().eval(), windows(3)
    assert torch.equal(network(x[:, None]), network(x))


@pytest.mark.parametrize("labels", [2, 12, 35])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_has_as_many_outputs_as_labels(name, labels):
    assert NETWORKS[name](labels).eval()(windows(2)).shape == (2, labels)


def test_outputs_are_log_probabilities(network):
    log_probs = network(windows(5))
    torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(5))
    assert (log_probs <= 0).all()


@pytest.mark.parametrize("x", [torch.zeros(2, 16_000), torch.ones(2, 16_000), -torch.ones(2, 16_000)])
def test_silence_and_full_scale_give_numbers(network, x):
    assert torch.isfinite(network(x)).all()


def test_a_batch_equals_one_by_one(network):
    x = windows(5)
    with torch.inference_mode():
        together = network(x)
        alone = torch.cat([network(window[None]) for window in x])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_scripted_and_frozen_equals_eager(network):
    x = windows(5)
    with torch.inference_mode():
        eager = network(x)
        scripted = frozen(network)
        for n in (5, 1, 3):  # the profiling executor specialises on the second call
            torch.testing.assert_close(scripted(x[:n]), eager[:n], rtol=0, atol=1e-4)


def test_freezing_leaves_the_network_as_it_was(network):
    x = windows(2)
    before = network(x)
    frozen(network)
    assert torch.equal(network(x), before)


def test_matchboxnet_is_its_features_and_then_its_classifier():
    network, x = MatchboxNet(5).eval(), windows(2)
    frames = network.features(x)
    assert frames.shape == (2, MELS, 98)
    assert torch.equal(network.classify(frames), network(x))


def test_matchboxnet_has_the_papers_blocks_kernels_and_dilation():
    network = MatchboxNet(30, blocks=3, repeats=2, channels=64)
    depthwise = [m for m in network.modules() if isinstance(m, nn.Conv1d) and m.groups > 1]
    assert [m.kernel_size[0] for m in depthwise] == [11, 13, 13, 15, 15, 17, 17, 29]
    assert [m.stride[0] for m in depthwise] == [2, 1, 1, 1, 1, 1, 1, 1]
    assert [m.dilation[0] for m in depthwise] == [1, 1, 1, 1, 1, 1, 1, 2]
    parameters = sum(p.numel() for p in network.parameters())
    assert 85_000 < parameters < 100_000  # the paper's 3×2×64 has 93 k


def test_every_network_has_a_recipe_and_augmenting_ones_have_frames_to_mask():
    assert set(RECIPES) == set(NETWORKS)
    for name, recipe in RECIPES.items():
        assert not recipe.augment or hasattr(NETWORKS[name](2), "classify")
