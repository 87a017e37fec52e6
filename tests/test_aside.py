"""Threads that the system does not give."""

import asyncio
import contextlib
import threading

import pytest

from kwsd.aside import DaemonThreads, start
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


def test_asyncio_takes_it_for_a_network_that_is_down():
    async def scenario():
        asyncio.get_running_loop().set_default_executor(DaemonThreads())
        with no_threads():
            await asyncio.get_running_loop().getaddrinfo("localhost", 80)

    with pytest.raises(OSError, match="no thread can be started"):
        asyncio.run(scenario())


def test_a_webhook_fails_and_is_told_of():
    failed = []

    async def scenario():
        asyncio.get_running_loop().set_default_executor(DaemonThreads())
        hooks = Hooks(make_hooks([HookConfig(post="http://localhost:9/", events=("reload",))], (), None), failed.append)
        event = Reload(ok=True)
        with no_threads():
            hooks(event, Stamp().line(event))
            await hooks.close()
        await asyncio.sleep(0)

    asyncio.run(scenario())
    assert ["no thread can be started" in event.reason for event in failed] == [True]
