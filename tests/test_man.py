"""The manual pages name every command, option, key and event, and `man` finds nothing wrong with them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kwsd.config import OF_OURS, Config
from kwsd.event import EVENT_TYPES
from kwsd.settings_file import structs

MAKE = Path(__file__).parents[1] / "package" / "man.py"
PAGES = ("kwsd.1", "kwsd.yaml.5", "kwsd-events.5")

needs_man = pytest.mark.skipif(not shutil.which("man"), reason="man is not installed (Debian: man-db)")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """{name: path}"""
    folder = tmp_path_factory.mktemp("man") / "pages"
    subprocess.run([sys.executable, MAKE, folder], check=True, timeout=60)
    return {path.name: path for path in folder.iterdir()}


def read(page):
    """What a reader sees of a page, in one line."""
    settings = {"MANWIDTH": "1000", "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": ""}
    shown = subprocess.run(
        ["man", "--warnings", "--local-file", "--encoding=UTF-8", page],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stderr == ""
    return " ".join(re.sub(".\b", "", shown.stdout).split())


def test_there_are_three(pages):
    assert set(pages) == set(PAGES)


@needs_man
@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_no_warnings_and_names_the_others(pages, name):
    text = read(pages[name])
    assert re.match(rf"{name[:-2]}\({name[-1]}\)", text)
    for other in {*PAGES} - {name}:
        assert f"{other[:-2]}({other[-1]})" in text


@needs_man
@pytest.mark.parametrize("command", ["run", "train", "ctl", "ctl threshold", "mix", "schema"])
def test_the_page_of_kwsd_says_what_help_says(pages, kwsd, command):
    text = read(pages["kwsd.1"])
    help_text = kwsd(*command.split(), "--help", more={"COLUMNS": "1000"}).out
    said = [line.split("  ")[-1].strip() for line in help_text.splitlines()[1:] if line.startswith(("  -", "  F"))]
    assert f"kwsd {command}" in text
    assert [line for line in said if line not in text and "show this help" not in line] == []


@needs_man
def test_a_line_that_begins_with_a_dot_is_not_lost(pages):
    assert ".wav or .flac; its words go into a .tsv beside it" in read(pages["kwsd.1"])


@needs_man
def test_the_page_of_the_config_has_every_key_and_its_default(pages):
    text = read(pages["kwsd.yaml.5"])
    keys = {key for section in structs(Config) for key in section.__struct_fields__} - {*OF_OURS}
    assert [key for key in sorted(keys) if key not in text] == []
    assert "debouncer.release score under which a word may count again; null: 0.4, or the threshold where" in text
    assert "(number above 0 to 1 or null; without it, null)" in text


@needs_man
def test_the_page_of_events_has_every_type(pages):
    text = read(pages["kwsd-events.5"])
    assert [kind for kind in EVENT_TYPES if kind not in text] == []
    assert "score smoothed posterior, 0 to 1 (number)" in text
