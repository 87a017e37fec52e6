"""The networks have the shapes they are named for, give log-probabilities, and survive scripting unchanged."""

import pytest
import torch
from torch import nn

from kwsd.audio_format import WINDOW
from kwsd.mel import MELS
from kwsd.networks import NETWORKS
from kwsd.networks.dstcn import DsTcn
from kwsd.networks.incremental import FEW, FRAMES, HasIncrement
from kwsd.networks.simplenet import SimpleNet
from kwsd.recording import DEMO, read_recording
from kwsd.training.export import frozen
from kwsd.training.recipe import RECIPES

DSTCN = [name for name in NETWORKS if name.startswith("dstcn")]
BCRESNET = [name for name in NETWORKS if name.startswith("bcresnet")]
STCN = [name for name in NETWORKS if name.startswith("stcn")]
TRIED = [
    "simplenet",
    "dstcn-tiny",
    "dstcn-base",
    "stcn-base",
    "bcresnet-1",
    "bcresnet-1.5",
]  # of every kind, without the slowest


def windows(n, seed=0):
    return torch.randn(n, 16_000, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.fixture(params=TRIED)
def network(request):
    """A network, its batch normalisation having seen a little, ready to score."""
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


def test_every_network_has_a_recipe_and_augmenting_ones_have_frames_to_mask():
    assert set(RECIPES) == set(NETWORKS)
    for name, recipe in RECIPES.items():
        assert not recipe.augment or hasattr(NETWORKS[name](2), "classify")


# --- DS-TCN ---


def test_dstcn_is_its_features_and_then_its_classifier():
    network, x = NETWORKS["dstcn-tiny"](5).eval(), windows(2)
    frames = network.features(x)
    assert frames.shape == (2, MELS, FRAMES) == (2, 40, 98)
    assert torch.equal(network.classify(frames), network(x))


def test_dstcn_has_49_columns_and_the_kernels_it_is_described_with():
    network = DsTcn(5, channels=8, wide=16)
    assert network.stem(network.features(windows(2)).unsqueeze(2)).shape == (2, 8, 1, 49)
    depthwise = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert [m.kernel_size for m in depthwise] == [(1, n) for n in (7, 9, 11, 13, 15, 15, 15)]
    assert {m.groups for m in depthwise} == {8}


def test_dstcn_comes_in_three_sizes():
    sizes = [sum(p.numel() for p in NETWORKS[name](12).parameters()) for name in DSTCN]
    assert sizes == sorted(sizes)
    assert [10_000 * round(size / 10_000) for size in sizes] == [10_000, 90_000, 200_000]


def test_dstcn_hears_every_part_of_the_window():
    network = keen("dstcn-tiny")
    x = windows(1)
    with torch.inference_mode():
        for at in (240, 8_000, 15_500):
            changed = x.clone()
            changed[0, at : at + 240] += 0.5 * torch.sin(torch.arange(240))
            assert (network(changed) - network(x)).abs().max() > 1e-3, at


# --- S-TCN ---


def test_stcn_is_its_features_and_then_its_classifier():
    network, x = NETWORKS["stcn-small"](5).eval(), windows(2)
    assert torch.equal(network.classify(network.features(x)), network(x))


def test_stcn_comes_in_two_sizes():
    sizes = [sum(p.numel() for p in NETWORKS[name](12).parameters()) for name in STCN]
    assert [10_000 * round(size / 10_000) for size in sizes] == [90_000, 200_000]


def test_stcn_pads_nothing_and_pools_every_column_that_is_left():
    convolutions = [m for m in NETWORKS["stcn-small"](5).modules() if isinstance(m, nn.Conv2d)]
    assert {m.padding for m in convolutions} == {(0, 0)}
    assert [m.kernel_size[1] for m in convolutions if m.groups > 1] == [3, 3, 5, 5, 7, 7, 23]


def test_stcn_hears_all_of_the_window_but_its_first_frame():
    network = keen("stcn-small")
    x = windows(1)
    with torch.inference_mode():
        for at in (240, 8_000, 15_500):
            changed = x.clone()
            changed[0, at : at + 240] += 0.5 * torch.sin(torch.arange(240))
            assert (network(changed) - network(x)).abs().max() > 1e-4, at
        changed = x.clone()
        changed[0, :160] = 0.5
        assert torch.equal(network(changed), network(x))


# --- BC-ResNet ---


def test_bcresnet_is_its_features_and_then_its_classifier():
    network, x = NETWORKS["bcresnet-1"](5).eval(), windows(2)
    assert torch.equal(network.classify(network.features(x)), network(x))


def test_bcresnet_has_the_papers_widths_blocks_and_dilations():
    network = NETWORKS["bcresnet-2"](12)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    over_time = [m for m in convolutions if m.kernel_size == (1, 3)]
    assert [m.out_channels for m in over_time] == 2 * [16] + 2 * [24] + 4 * [32] + 4 * [40]
    assert [m.dilation[1] for m in over_time] == 2 * [1] + 2 * [2] + 4 * [4] + 4 * [8]
    over_frequency = [m for m in convolutions if m.kernel_size == (3, 1)]
    assert [m.stride[0] for m in over_frequency] == [1, 1, 2, 1, 2, 1, 1, 1, 1, 1, 1, 1]


def test_bcresnet_has_about_the_papers_parameters():
    thousands = [sum(p.numel() for p in NETWORKS[name](12).parameters()) / 1000 for name in BCRESNET]
    assert thousands == sorted(thousands)
    assert (thousands[0], thousands[-1]) == pytest.approx((9.2, 321), rel=0.1)


# --- exported: the same answers from what is new alone ---


def speech(streams, samples):
    """Real speech, every stream from another place of the demo recording: (streams, samples)."""
    recording = torch.from_numpy(read_recording(DEMO))
    return torch.stack([recording[start : start + samples] for start in range(8_000, 8_000 + 21_000 * streams, 21_000)])


def keen(name):
    """A network whose answers differ visibly from window to window, as an untrained one's hardly do."""
    torch.manual_seed(0)
    network, some = NETWORKS[name](5), speech(8, WINDOW)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # it has seen this speech, and nothing else
    with torch.no_grad():
        network.train()(some)
        network.classifier.weight /= network.eval()(some).std(0).mean()
    return network


@pytest.fixture(scope="module", params=["dstcn-tiny", "dstcn-base", "stcn-small", "bcresnet-1"])
def pair(request):
    """A network and what is exported of it as TorchScript."""
    network = keen(request.param)
    return network, frozen(network)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_that_can_be_advanced_are_those_on_frames(name):
    assert isinstance(NETWORKS[name](2), HasIncrement) == (name != "simplenet")


@pytest.mark.parametrize(
    ("streams", "hops", "hop"),
    [(1, 1, 1600), (1, 3, 1600), (1, 1, 160), (3, 1, 320), (3, 3, 160), (6, 1, 1600), (6, 3, 320)],
)
def test_begun_and_advanced_equals_whole_windows(pair, streams, hops, hop):
    network, exported = pair
    if hop % network.step:
        pytest.skip(f"advances by multiples of {network.step} samples")
    sound = speech(streams, WINDOW + 2 * hops * hop)
    with torch.inference_mode():
        expected = torch.stack([network(window) for window in sound.unfold(1, WINDOW, hop).unbind(1)], 1)
        log_probs, state = exported.begin(sound[:, :WINDOW])
        answers = [log_probs.unsqueeze(1)]
        for part in sound[:, WINDOW:].split(hops * hop, 1):
            log_probs, state = exported.advance(part, state, hops)
            answers.append(log_probs)
    assert expected.shape == (streams, 1 + 2 * hops, 5)
    assert (expected - expected[:, :1]).abs().max() > 0.01, "the windows must differ for this to say anything"
    torch.testing.assert_close(torch.cat(answers, 1), expected, rtol=0, atol=1e-4)


def test_both_orders_of_convolution_are_tried_here():
    assert 3 <= FEW < 6  # so many windows at most are convolved in one order, more in the other


def test_after_a_second_of_hops_the_state_is_as_if_begun_there(pair):
    _, exported = pair
    sound = speech(2, 2 * WINDOW)
    with torch.inference_mode():
        _, state = exported.begin(sound[:, :WINDOW])
        assert state.shape == (2, exported.state)
        for part in sound[:, WINDOW:].split(1600, 1):
            _, state = exported.advance(part, state, 1)
        _, fresh = exported.begin(sound[:, WINDOW:])
    torch.testing.assert_close(state, fresh, rtol=0, atol=1e-4)


def test_a_hop_as_long_as_the_window_leaves_nothing_of_what_was_before(pair):
    network, exported = pair
    sound = speech(2, 2 * WINDOW)
    with torch.inference_mode():
        _, state = exported.begin(sound[:, :WINDOW])
        log_probs, _ = exported.advance(sound[:, WINDOW:], state, 1)
        torch.testing.assert_close(log_probs[:, 0], network(sound[:, WINDOW:]), rtol=0, atol=1e-4)


def steps(samples, hops, network):
    """Which of a network's steps are the last of a hop."""
    return (1 + torch.arange(hops)) * (samples // hops // network.step) - 1


@pytest.mark.parametrize("hops", [1, 2, 5])
def test_what_goes_to_onnx_is_the_same_network_for_a_window_and_for_hops(pair, hops):
    network, _ = pair
    forms = network.for_onnx().eval()
    sound = speech(3, WINDOW + hops * 1600)
    with torch.inference_mode():
        log_probs, state = forms(sound[:, :WINDOW], torch.zeros(3, forms.state), steps(WINDOW, 1, network))
        torch.testing.assert_close(log_probs, network(sound[:, :WINDOW]), rtol=0, atol=1e-4)
        log_probs, after = forms(sound[:, WINDOW:], state, steps(hops * 1600, hops, network))
        log_probs = log_probs.reshape(3, hops, -1)
        for hop in range(hops):
            window = sound[:, (hop + 1) * 1600 :][:, :WINDOW]
            torch.testing.assert_close(log_probs[:, hop], network(window), rtol=1e-4, atol=1e-4)
        assert after.shape == state.shape


@pytest.mark.parametrize("name", ["dstcn-tiny", "stcn-small", "bcresnet-1"])
def test_making_the_exported_forms_leaves_the_network_as_it_was(name):
    network, x = keen(name), speech(2, WINDOW)
    before, weights = network(x), {name: value.clone() for name, value in network.state_dict().items()}
    frozen(network)
    network.for_onnx().eval()
    assert torch.equal(network(x), before)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
