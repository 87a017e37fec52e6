"""Doors of asyncio services: who comes while they are closed does not wait for ever."""

import asyncio
import contextlib
import multiprocessing
import socket

import pytest

from kwsd.address import parse_address
from kwsd.door import Doors, bind
from kwsd.errors import UNAVAILABLE, KwsdError


class Greeter(asyncio.Protocol):
    def connection_made(self, transport):
        transport.write(b"hello")
        transport.close()


@pytest.mark.parametrize("turns", range(5))
@pytest.mark.parametrize("where", ["tcp://127.0.0.1:0", "unix:door"])
def test_who_is_on_the_way_in_while_it_is_closed_is_served_or_sent_away(where, turns, tmp_path):
    async def come_and_close():
        doors = Doors("http.on")
        await doors.open(parse_address(where, tmp_path.joinpath), None, Greeter)
        [name] = doors.names
        with socket.socket(socket.AF_UNIX if isinstance(name, str) else socket.AF_INET) as guest:
            guest.settimeout(5.0)
            guest.connect(name)
            for _ in range(turns):
                await asyncio.sleep(0)
            await doors.close()
            await asyncio.sleep(0.1)
            with contextlib.suppress(ConnectionResetError):  # nobody had let it in yet
                assert await asyncio.to_thread(guest.recv, 100) in (b"hello", b"")
        assert not list(tmp_path.iterdir())

    asyncio.run(come_and_close())


def test_a_file_that_another_put_in_the_place_of_ours_stays(tmp_path):
    async def be_replaced():
        doors = Doors("http.on")
        await doors.open(parse_address("unix:door", tmp_path.joinpath), None, Greeter)
        (tmp_path / "door").rename(tmp_path / "old")  # so that its number is not given again
        (tmp_path / "door").write_text("theirs")
        await doors.close()

    asyncio.run(be_replaced())
    assert (tmp_path / "door").read_text() == "theirs"


TOGETHER, ROUNDS = 4, 40


def begin_together(path, barrier, codes):
    """Again and again, at a path where nobody answers any more. `codes` gets 0, or the exit code."""
    for _ in range(ROUNDS):
        listener, code = None, 0
        barrier.wait()
        try:
            listener = bind(path, "sinks.socket.path")
        except KwsdError as refusal:
            code = refusal.exit_code
        codes.put(code)
        barrier.wait()
        if listener is not None:
            listener.close()


def test_of_daemons_that_begin_at_once_one_has_the_socket_and_the_others_know(tmp_path):
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(tmp_path / "door"))
    processes = multiprocessing.get_context("spawn")
    barrier, codes = processes.Barrier(TOGETHER), processes.SimpleQueue()
    daemons = [
        processes.Process(target=begin_together, args=(tmp_path / "door", barrier, codes)) for _ in range(TOGETHER)
    ]
    for daemon in daemons:
        daemon.start()
    said = [codes.get() for _ in range(TOGETHER * ROUNDS)]
    for daemon in daemons:
        daemon.join()
    assert said.count(0) == ROUNDS and said.count(UNAVAILABLE) == (TOGETHER - 1) * ROUNDS
