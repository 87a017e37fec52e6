"""Threads that the system does not give."""

import asyncio
import contextlib
import threading
from pathlib import Path

import pytest

from kwsd.aside import Loop, NoThread, start
from kwsd.config import HookConfig
from kwsd.errors import UNAVAILABLE, KwsdError
from kwsd.event import Reload, Stamp
from kwsd.sinks.hooks import Hooks, make_hooks


@contextlib.contextmanager
def no_threads():
    """None can be started: no system has room for such a stack."""
    before = threading.stack_size(1 << 46)
    try:
        yield
    finally:
        threading.stack_size(before)


def test_what_is_wrong_and_what_to_do_is_one_line():
    refusal = r"no thread can be started for ears .*TasksMax=, ulimit -u"
    with no_threads(), pytest.raises(KwsdError, match=refusal) as refused:
        start(threading.Thread(target=print, name="ears"))
    assert refused.value.exit_code == UNAVAILABLE


def run(scenario):
    """To its very end, as the daemon does."""
    with asyncio.Runner(loop_factory=Loop) as runner, no_threads():
        return runner.run(scenario)


def test_asyncio_takes_it_for_a_network_that_is_down():
    async def scenario():
        await asyncio.get_running_loop().getaddrinfo("localhost", 80)

    with pytest.raises(NoThread, match="no thread can be started"):
        run(scenario())


async def told_of(hook, failed):
    hooks = Hooks(make_hooks([hook], (), Path), failed.append)
    event = Reload(ok=True)
    hooks(event, Stamp().line(event))
    await hooks.close()
    await asyncio.sleep(0)


def test_a_webhook_fails_and_is_told_of():
    failed = []
    run(told_of(HookConfig(post="http://localhost:9/", events=("reload",)), failed))
    assert ["no thread can be started" in event.reason for event in failed] == [True]


def test_a_program_takes_no_thread(tmp_path):
    failed = []
    run(told_of(HookConfig(shell=f"cat > {tmp_path}/told", events=("reload",)), failed))
    assert not failed and "reload" in (tmp_path / "told").read_text()


def test_the_end_of_a_loop_takes_no_thread():
    with no_threads(), asyncio.Runner(loop_factory=Loop) as runner:
        assert runner.run(asyncio.sleep(0, "done")) == "done"
