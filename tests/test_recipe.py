"""Recipe files: what they say, what they leave to the network's own recipe, and what is wrong with a bad one."""

from pathlib import Path

import msgspec
import pytest

from kwsd.errors import ConfigError
from kwsd.training.labels import parse_labels
from kwsd.training.recipe import RECIPES, read_recipe

SHIPPED = sorted((Path(__file__).parents[1] / "models").glob("*.yaml"))


@pytest.fixture
def recipe(tmp_path):
    """`recipe("model: simplenet")` reads a file with these lines."""

    def read(*lines):
        (tmp_path / "r.yaml").write_text("\n".join(lines))
        return read_recipe(tmp_path / "r.yaml")

    return read


def test_what_a_file_does_not_say_is_the_networks_own(recipe):
    model, read = recipe("model: dstcn-small", "labels: yes,no", "epochs: 7")
    assert model == "dstcn-small"
    assert read == msgspec.structs.replace(RECIPES["dstcn-small"], labels="yes,no", epochs=7)


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["epochs: 7"], "r.yaml: model: None: no such network; there are simplenet"),
        (["model: [dstcn-base]"], "r.yaml:1: model: ['dstcn-base']: no such network"),
        (["# a comment", "model: resnet"], "r.yaml:2: model: resnet: no such network"),
        (["model: dstcn-base", "epoch: 7"], "r.yaml:2: epoch: unknown key; did you mean epochs?"),
        (["model: dstcn-base", "epochs: 0"], "r.yaml:2: epochs: expected int >= 1"),
        (["model: dstcn-base", "batch: many"], "r.yaml:2: batch: expected int, got str"),
        (["model: dstcn-base", "learning_rate: 5"], "r.yaml:2: learning_rate: expected float < 1.0"),
        (["model: dstcn-base", "optimiser: lion"], "r.yaml:2: optimiser: 'lion' is none of adam, adamw, sgd"),
        (["model: dstcn-base", "thresholds: {yes: 2.0}"], "r.yaml:2: thresholds"),
        (["model: dstcn-base", "thresholds: {yes: 0}"], "r.yaml:2: thresholds.yes: expected float > 0.0"),
        (["model: dstcn-base", "model: simplenet"], "r.yaml:2: model: given twice"),
        (["model: simplenet", "augment: true"], "r.yaml:2: augment: simplenet has no frames to augment; leave it out"),
        (["- model"], "r.yaml: must hold `key: value` lines, not a list"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_a_remedy(recipe, lines, complaint):
    with pytest.raises(ConfigError) as failure:
        recipe(*lines)
    assert complaint in str(failure.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: no such recipe") as failure:
        read_recipe(tmp_path / "none.yaml")
    assert failure.value.exit_code == 66


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_can_be_read_and_recommends_thresholds_for_its_own_words(path):
    _, read = read_recipe(path)
    assert set(read.thresholds) <= set(parse_labels(read.labels))
