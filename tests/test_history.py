"""The figures of a training run outlive it, and go on where the checkpoint goes on."""

import csv
import dataclasses
import time

import pytest

from kwsd.errors import UNAVAILABLE, KwsdError
from kwsd.training.history import EpochFigures, History

FIGURES = EpochFigures(
    epoch=1, learning_rate=0.01, loss=2.5, training_accuracy=0.25, validation_accuracy=0.5, spotting=None, seconds=3.0
)


def epochs(path):
    with path.open(newline="") as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


def filled(path, n):
    history = History(path, 0)
    for epoch in range(1, n + 1):
        history.add(dataclasses.replace(FIGURES, epoch=epoch))
    return history


def test_every_epoch_is_a_line_with_a_name_over_every_figure(tmp_path):
    filled(tmp_path / "a.csv", 1)
    assert (tmp_path / "a.csv").read_text() == (
        "epoch,learning_rate,loss,training_accuracy,validation_accuracy,spotting,seconds\n1,0.01,2.5,0.25,0.5,,3\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize(("resumed_after", "kept"), [(3, [1, 2, 3, 4]), (2, [1, 2, 4]), (0, [4])])
def test_a_resumed_run_goes_on_after_its_checkpoint(tmp_path, resumed_after, kept):
    filled(tmp_path / "a.csv", 3)
    History(tmp_path / "a.csv", resumed_after).add(dataclasses.replace(FIGURES, epoch=4))
    assert epochs(tmp_path / "a.csv") == kept


@pytest.mark.parametrize(
    "bad", ["", "\xff\xfe", "2,0.01", "x,,,,,,", "0,,,,,,", "2,0.01,much,,,,", "2,,,,,,,,", "y" * 200_000]
)
def test_a_line_that_is_damaged_takes_no_other_with_it(bad, tmp_path):
    filled(tmp_path / "a.csv", 3)
    lines = (tmp_path / "a.csv").read_text().splitlines()
    lines[2] = bad
    (tmp_path / "a.csv").write_text("\n".join(lines), encoding="latin-1")
    history = History(tmp_path / "a.csv", 3)
    history.add(dataclasses.replace(FIGURES, epoch=4))
    assert epochs(tmp_path / "a.csv") == [1, 3, 4]
    history.draw(tmp_path / "a.png")


@pytest.mark.parametrize("content", ["", "epoch,loss\n", "what\nis,this\n", "\x00\xff", "epoch,loss\n1\n"])
def test_a_file_that_is_none_of_ours_is_begun_anew(tmp_path, content):
    (tmp_path / "a.csv").write_text(content, encoding="latin-1")
    History(tmp_path / "a.csv", 5).add(FIGURES)
    assert epochs(tmp_path / "a.csv") == [1]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(KwsdError, match=r"a\.csv: cannot be written"):
        History(tmp_path / "a.csv", 0).add(FIGURES)


@pytest.mark.parametrize("spotting", [None, 0.75])
def test_the_curves_are_a_picture(tmp_path, spotting):
    history = filled(tmp_path / "a.csv", 2)
    history.add(dataclasses.replace(FIGURES, epoch=3, spotting=spotting))
    history.draw(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_of_a_run_of_which_nothing_is_known_any_more_no_picture_takes_the_place_of_another(tmp_path):
    (tmp_path / "a.png").write_text("the curves")
    History(tmp_path / "a.csv", 3).draw(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_text() == "the curves"


def test_a_picture_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(KwsdError, match=r"nowhere/a\.png: cannot be written"):
        filled(tmp_path / "a.csv", 1).draw(tmp_path / "nowhere/a.png")


def test_the_figures_go_to_tensorboard_as_well_and_a_resumed_run_takes_back_what_was_lost(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def write(resumed_after, *losses):
        history = History(tmp_path / "a.csv", resumed_after, tmp_path / "board")
        for epoch, loss in enumerate(losses, resumed_after + 1):
            history.add(dataclasses.replace(FIGURES, epoch=epoch, loss=loss))
        history.close()

    write(0, 3.0, 2.0, 1.0)
    time.sleep(1.1)  # its files are named by the second, and read in the order of their names
    write(1, 2.5)
    board = event_accumulator.EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    assert set(board.Tags()["scalars"]) == {
        field.name for field in dataclasses.fields(FIGURES) if field.name not in ("epoch", "spotting")
    }
    assert [(point.step, point.value) for point in board.Scalars("loss")] == [(1, 3.0), (2, 2.5)]


def test_without_tensorboard_the_remedy_is_named_before_anything_is_looked_for(kwsd, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['tensorboard'] = None\n")
    command = ("train", "--model", "simplenet", "--data", "nowhere", "--tensorboard", "board")
    kwsd(*command, more={"PYTHONPATH": str(tmp_path)}).refused(UNAVAILABLE, "pip install 'kwsd[tensorboard]'")


def test_a_folder_for_tensorboard_that_cannot_be_is_named(tmp_path):
    (tmp_path / "board").write_text("a file")
    with pytest.raises(KwsdError, match=r"board: cannot be written"):
        History(tmp_path / "a.csv", 0, tmp_path / "board")
