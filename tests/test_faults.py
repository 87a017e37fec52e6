"""Every fault script in its short form: all words that were said are heard, or their loss was announced."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sound_server import missing

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())}; make test installs it"),
    pytest.mark.timeout(400),  # the first one waits for all
]

SCRIPTS = Path(__file__).with_name("faults")
SHORT = {
    "sound_server_killed": ("--times", "2"),
    "microphone_muted": ("--times", "1"),
    "device_rate": ("--times", "2"),
    "readers": ("--minutes", "0.15", "--readers", "40"),
    "stopped": ("--times", "2"),
    "slow_model": ("--seconds", "12"),
    "starved": ("--seconds", "8", "--burners", "1"),
    "log_full": ("--seconds", "10"),
    "reloads": ("--times", "10"),
    "model_file": ("--times", "6"),
    "clock": ("--times", "5"),
    "signals": ("--times", "6"),
    "day": ("--hours", "0.1"),
    "fuzz": ("--inputs", "5000"),
    "real_time": ("--minutes", "0.15"),
}
AT_ONCE = 4


def run(script):
    command = [sys.executable, str(SCRIPTS / f"{script}.py"), *SHORT[script]]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)


@pytest.fixture(scope="module")
def results():
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(SHORT, pool.map(run, SHORT), strict=True))


def test_every_script_has_a_short_form():
    assert {path.stem for path in SCRIPTS.glob("*.py")} == {*SHORT, "scene"}


@pytest.mark.parametrize("script", SHORT)
def test_nothing_is_lost_without_a_word(script, results):
    result = results[script]
    if "is not installed" in result.stderr:
        pytest.skip(result.stderr.strip())
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(result.stdout.splitlines()[0])
    assert found[{"day": "words", "fuzz": "inputs"}.get(script, "heard")] > 0
