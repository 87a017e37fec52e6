"""The least inference can cost is counted, not guessed."""

from pathlib import Path

import pytest
from test_export import CLIPS, trained

from kwsd.bound import Peak, Work, peak, work
from kwsd.engines import load_spotter
from kwsd.training.export import export

MODELS = Path(__file__).parent.parent / "models"


def test_work_grows_with_the_hop_and_the_network():
    counted = {}
    for name in ("commands", "commands-fast"):
        path = MODELS / f"{name}.onnx"
        spotter = load_spotter(path, "cpu")
        counted[name] = [work(path, spotter, hop) for hop in (1600, 3200)]
        assert counted[name][0].macs < counted[name][1].macs
        assert counted[name][0].weight_bytes == counted[name][1].weight_bytes < path.stat().st_size
    assert counted["commands"] == counted["commands-fast"], "of a cascade the network that hears everything is counted"


def test_work_is_the_networks(tmp_path):
    counted = []
    for name in ("dstcn-tiny", "dstcn-base"):
        path = tmp_path / f"{name}.onnx"
        export(trained(name), path, CLIPS)
        counted.append(work(path, load_spotter(path, "cpu"), 1600))
    assert counted[0].macs < counted[1].macs and counted[0].weight_bytes < counted[1].weight_bytes


def test_torchscript_is_not_counted():
    path = MODELS / "simplenet.pt"
    assert work(path, load_spotter(path, "cpu"), 1600) is None


def test_the_peaks_are_those_of_a_processor():
    measured = peak()
    assert 1e8 < measured.macs_per_s < 1e13
    assert 1e8 < measured.bytes_per_s < 1e13


@pytest.mark.parametrize(
    ("streams", "least"),
    [(1, 1010.0), (1000, 1000.0)],  # alone it waits for its weights; a thousand share them and multiply
)
def test_the_slower_of_both_is_the_bound(streams, least):
    peaks = Peak(macs_per_s=1e9, bytes_per_s=1e9)
    assert peaks.least_us(Work(macs=1_000_000, weight_bytes=1_000_000, state_bytes=5_000), streams) == least
