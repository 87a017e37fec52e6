"""What the options of several commands mean."""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kwsd.errors import USAGE, ConfigError
from kwsd.paths import kind_of


def settings(options: argparse.Namespace, *more: str) -> tuple[str, ...]:
    """What `--model` and `--set` say, and more, as `load_config` takes it: the later wins."""
    model = (f"model={as_yaml(model_file(options.model).resolve())}",) if options.model else ()
    return (*model, *more, *options.set)


def model_file(named: Path) -> Path:
    """A file, or a model that kwsd comes with, by its name."""
    from kwsd.config import shipped_model

    return named if kind_of(named) is not None else shipped_model(str(named)) or named


def as_yaml(value: Any) -> str:
    """Paths and all else as YAML, which means the same whatever is in it."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return re.sub(r"[\ud800-\udfff]", lambda part: f"\\u{ord(part[0]):04x}", text)  # of a name that is no UTF-8


def refuse(options: argparse.Namespace, why: str, names: Sequence[str]) -> None:
    """Options that would do nothing. Raises ConfigError if one is given."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value is not False and value != []:
            raise ConfigError(f"--{name}: {why}; leave it out", exit_code=USAGE)
