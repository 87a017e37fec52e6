"""Readers of the socket: many, slow, frozen, gone."""

import asyncio
import grp
import json
import os
import socket
import stat

import pytest

from kwsd.control import Command
from kwsd.door import events_path
from kwsd.errors import NO_PERMISSION, ConfigError, KwsdError
from kwsd.event import Answer, Heard, Reload, RunnerUp, Scores, Shutdown
from kwsd.sinks.unix_socket import UnixSocket

EVENT = Reload(ok=True)
HELLO = b'{"type":"hello"}\n'
SCORES = Scores(stream="a", at_s=0.0, level_dbfs=0.0, lag_ms=0, posteriors={}, scores={}, thresholds={})
LINE = b'{"type":"detection","n":%d,"pad":"' + b"x" * 200 + b'"}\n'


def connect(path):
    reader = socket.socket(socket.AF_UNIX)
    reader.connect(str(path))
    return reader


async def read_lines(path, n=None):
    incoming, outgoing = await asyncio.open_unix_connection(str(path))
    lines = []
    while (n is None or len(lines) < n) and (line := await incoming.readline()):
        lines.append(json.loads(line))
    outgoing.close()
    return lines


async def opened(path, queue=16):
    return await UnixSocket.open(path, queue, lambda: HELLO)


def test_ten_readers_each_get_a_hello_and_then_every_line(tmp_path):
    async def scenario():
        sink = await opened(tmp_path / "s")
        readers = [asyncio.create_task(read_lines(sink.path)) for _ in range(10)]
        while len(sink._readers) < 10:
            await asyncio.sleep(0.01)
        for n in range(5):
            sink(EVENT, LINE % n)
        await sink.close()
        return await asyncio.gather(*readers)

    for lines in asyncio.run(scenario()):
        assert lines[0]["type"] == "hello" and lines[-1]["type"] == "refused", "it was opened, and is closed"
        assert [line["n"] for line in lines[1:-1]] == [0, 1, 2, 3, 4]


def test_what_nobody_expected_of_a_command_is_reported(tmp_path):
    async def scenario():
        async def obey(_):
            raise ValueError("nobody expected this")

        reported = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
        sink = await UnixSocket.open(tmp_path / "s", 16, lambda: HELLO, obey=obey)
        incoming, outgoing = await asyncio.open_unix_connection(str(sink.path))
        outgoing.write(b'{"command": "status"}\n')
        assert (await incoming.read()).startswith(HELLO)
        outgoing.close()
        await sink.close()
        return reported

    assert [str(error) for error in asyncio.run(scenario())] == ["nobody expected this"]


def test_a_frozen_reader_loses_its_oldest_lines_and_is_told_how_many(tmp_path, monkeypatch):
    monkeypatch.setattr("kwsd.sinks.unix_socket.FLUSH_S", 10.0)  # it thaws while the socket is closed

    async def scenario():
        sink = await opened(tmp_path / "s", queue=16)
        frozen = connect(sink.path)
        awake = asyncio.create_task(read_lines(sink.path, 2001))
        while len(sink._readers) < 2:
            await asyncio.sleep(0.01)
        for n in range(2000):
            sink(EVENT, LINE % n)
            await asyncio.sleep(0)
        awake_lines = await asyncio.wait_for(awake, 10)
        closing = asyncio.create_task(sink.close())
        await asyncio.sleep(0.05)
        frozen.setblocking(False)
        received = b""
        while True:
            try:
                piece = frozen.recv(1 << 20)
            except BlockingIOError:
                await asyncio.sleep(0.01)
                continue
            if not piece:
                break
            received += piece
        await closing
        frozen.close()
        return awake_lines, [json.loads(line) for line in received.splitlines()]

    awake, frozen = asyncio.run(scenario())
    assert [line["n"] for line in awake[1:]] == list(range(2000)), "the reader that kept up lost nothing"
    dropped = sum(line["count"] for line in frozen if line["type"] == "dropped")
    kept = [line["n"] for line in frozen if line["type"] == "detection"]
    assert dropped > 0
    assert dropped + len(kept) == 2000, "what was lost and what was kept add up"
    last_gap = max(place for place, line in enumerate(frozen) if line["type"] == "dropped")
    newest = [line["n"] for line in frozen[last_gap + 1 : -1]]
    assert frozen[-1]["type"] == "refused", "it was opened, and is closed"
    assert kept == sorted(kept) and newest == list(range(2000))[-len(newest) :] != [], "it is the oldest that go"


def test_a_reader_that_vanishes_harms_nobody(tmp_path):
    async def scenario():
        sink = await opened(tmp_path / "s")
        gone = connect(sink.path)
        staying = asyncio.create_task(read_lines(sink.path))
        while len(sink._readers) < 2:
            await asyncio.sleep(0.01)
        gone.close()
        for n in range(10):
            sink(EVENT, LINE % n)
            await asyncio.sleep(0.01)
        assert len(sink._readers) == 1
        await sink.close()
        return await staying

    assert [line["n"] for line in asyncio.run(scenario())[1:-1]] == list(range(10))


def test_what_a_reader_says_that_is_no_command_is_answered_once_and_then_ignored(tmp_path):
    async def scenario():
        sink = await opened(tmp_path / "s")
        incoming, outgoing = await asyncio.open_unix_connection(str(sink.path))
        assert await incoming.readline() == HELLO
        outgoing.write(b"\x00garbage\n" * 10_000)
        await outgoing.drain()
        answer = json.loads(await incoming.readline())
        sink(EVENT, LINE % 7)
        line = json.loads(await incoming.readline())
        outgoing.close()
        await sink.close()
        return answer, line

    answer, line = asyncio.run(scenario())
    assert answer["type"] == "refused" and "subscribe" in answer["reason"]
    assert line["n"] == 7


def test_scores_are_for_those_who_asked_and_as_long_as_they_want(tmp_path):
    async def scenario():
        changes = []
        sink = await UnixSocket.open(tmp_path / "s", 16, lambda: HELLO, watched=lambda: changes.append(sink.watched))
        incoming, outgoing = await asyncio.open_unix_connection(str(sink.path))
        others, leaving = await asyncio.open_unix_connection(str(sink.path))
        assert await incoming.readline() == await others.readline() == HELLO

        async def ask(*wanted):
            outgoing.write(json.dumps({"command": "subscribe", "scores": "scores" in wanted}).encode() + b"\n")
            assert json.loads(await incoming.readline())["ok"]

        async def numbers(lines, count):
            return [json.loads(await lines.readline())["n"] for _ in range(count)]

        sink(SCORES, LINE % 1)
        await ask("scores")
        sink(SCORES, LINE % 2)
        sink(EVENT, LINE % 3)
        mine = await numbers(incoming, 2)
        await ask()
        sink(SCORES, LINE % 4)
        sink(EVENT, LINE % 5)
        mine += await numbers(incoming, 1)
        theirs = await numbers(others, 2)
        await ask("scores")
        outgoing.close()
        while sink.watched:
            await asyncio.sleep(0.01)
        leaving.close()
        await sink.close()
        return mine, theirs, changes

    mine, theirs, changes = asyncio.run(scenario())
    assert (mine, theirs) == ([2, 3, 5], [3, 5])
    assert changes[:4] == [True, False, True, False]


def heard(stream, keyword):
    return Heard(
        stream=stream, keyword=keyword, score=0.9, threshold=0.5, runner_up=RunnerUp("no", 0.1), start_s=0.0, end_s=1.0,
        level_dbfs=-20.0, model="m",
    )  # fmt: skip


def test_a_reader_gets_the_types_streams_and_keywords_it_asked_for(tmp_path):
    async def scenario():
        sink = await opened(tmp_path / "s")
        incoming, outgoing = await asyncio.open_unix_connection(str(sink.path))
        await incoming.readline()
        outgoing.write(
            b'{"command":"subscribe","id":7,"types":["detection","reload"],"streams":["a","b"],"keywords":["go"]}\n'
        )
        answer = json.loads(await incoming.readline())
        events = [heard("a", "go"), heard("a", "no"), heard("c", "go"), Reload(ok=True), SCORES, heard("b", "go")]
        for n, event in enumerate(events):
            sink(event, LINE % n)
        got = [json.loads(await incoming.readline())["n"] for _ in range(3)]
        outgoing.close()
        await sink.close()
        return answer, got

    answer, got = asyncio.run(scenario())
    assert answer | {"time": ""} == {"v": 1, "type": "answer", "time": "", "to": "subscribe", "ok": True, "id": 7}
    assert got == [0, 3, 5]


@pytest.mark.parametrize("may", [True, False])
def test_commands_are_answered_in_order_where_readers_may_give_them(tmp_path, may):
    async def obey(command: Command):
        return Answer(to="mute", ok=True, id=command.id)

    async def scenario():
        sink = await UnixSocket.open(tmp_path / "s", 16, lambda: HELLO, obey=obey if may else None)
        incoming, outgoing = await asyncio.open_unix_connection(str(sink.path))
        await incoming.readline()
        for n in range(3):
            outgoing.write(b'{"command":"mute","id":%d}\n' % n)
        answers = [json.loads(await incoming.readline()) for _ in range(3)]
        outgoing.close()
        await sink.close()
        return answers

    answers = asyncio.run(scenario())
    assert [(answer["to"], answer["id"], answer["ok"]) for answer in answers] == [("mute", n, may) for n in range(3)]
    assert may or ("control is false" in answers[0]["error"] and answers[0]["exit_code"] == NO_PERMISSION)


def test_at_the_end_who_has_its_answer_is_told_of_the_end_and_no_more(tmp_path):
    async def obey(command: Command):
        return Answer(to="mute", ok=True, id=command.id)

    async def scenario():
        sink = await UnixSocket.open(tmp_path / "s", 16, lambda: HELLO, obey=obey)
        readers = [await asyncio.open_unix_connection(str(sink.path)) for _ in range(2)]
        assert [await incoming.readline() for incoming, _ in readers] == [HELLO, HELLO]
        (obeyed, outgoing), (_, leaving) = readers
        outgoing.write(b'{"command":"mute","id":1}\n')
        assert json.loads(await obeyed.readline())["ok"]
        sink(Shutdown(reason="SIGTERM", detections=0), LINE % 1)
        await sink.close()
        told = [await incoming.read() for incoming, _ in readers]
        outgoing.close()
        leaving.close()
        return told

    assert asyncio.run(scenario()) == [LINE % 1, LINE % 1]


@pytest.mark.parametrize(("reads", "flush_s"), [(True, 60.0), (False, 0.1)])
def test_close_waits_shortly_for_who_does_not_read_and_no_longer_for_who_does(reads, flush_s, tmp_path, monkeypatch):
    monkeypatch.setattr("kwsd.sinks.unix_socket.FLUSH_S", flush_s)

    async def scenario():
        sink = await opened(tmp_path / "s")
        reader = connect(sink.path)
        while not sink._readers:
            await asyncio.sleep(0.01)
        for n in range(0 if reads else 5_000):  # more than the kernel takes
            sink(EVENT, LINE % n)
            await asyncio.sleep(0)
        await asyncio.wait_for(sink.close(), 20.0)
        reader.close()

    asyncio.run(scenario())


def test_a_command_that_is_too_long_is_answered(tmp_path):
    async def scenario():
        sink = await opened(tmp_path / "s")
        incoming, outgoing = await asyncio.open_unix_connection(str(sink.path))
        await incoming.readline()
        outgoing.write(b'{"command": "mute", "id": "' + b"x" * 100_000 + b'"}\n')
        answer = json.loads(await incoming.readline())
        outgoing.close()
        await sink.close()
        return answer

    assert "at most 65536 bytes" in asyncio.run(scenario())["reason"]


def test_there_are_no_more_readers_than_descriptors_for_all_else(tmp_path, monkeypatch):
    monkeypatch.setattr("kwsd.sinks.unix_socket.MOST_READERS", 3)

    async def scenario():
        sink = await opened(tmp_path / "s")
        readers = [await asyncio.open_unix_connection(str(sink.path)) for _ in range(4)]
        kinds = [json.loads(await incoming.readline())["type"] for incoming, _ in readers]
        assert await asyncio.wait_for(readers[3][0].read(), 10.0) == b"", "who is refused is not kept waiting"
        readers[0][1].close()
        while len(sink._readers) > 2:
            await asyncio.sleep(0.01)
        again, leaving = await asyncio.open_unix_connection(str(sink.path))
        kinds.append(json.loads(await again.readline())["type"])
        for _, outgoing in [*readers, (again, leaving)]:
            outgoing.close()
        await sink.close()
        return kinds

    assert asyncio.run(scenario()) == ["hello", "hello", "hello", "refused", "hello"]


@pytest.mark.parametrize(
    "said",
    [
        b'{"command":"subscribe","types":["wombat"]}\n',
        b'{"command":"mute","streams":[]}\n',
        b'{"command":"threshold","keyword":"go","value":2}\n',
        b'{"command":"dance"}\n',
        b'{"mute":true}\n',
        b"[]\n",
        b"\xff\n",
        b"{}\n",
        b"[" * 4000 + b"\n",
    ],
)
def test_what_is_nearly_a_command_is_refused(tmp_path, said):
    async def scenario():
        sink = await opened(tmp_path / "s")
        incoming, outgoing = await asyncio.open_unix_connection(str(sink.path))
        await incoming.readline()
        outgoing.write(said)
        answer = json.loads(await incoming.readline())
        outgoing.close()
        await sink.close()
        return answer

    assert asyncio.run(scenario())["type"] == "refused"


def test_the_socket_is_for_owner_and_group_and_goes_when_closed(tmp_path):
    async def scenario():
        sink = await opened(tmp_path / "s")
        mode = stat.S_IMODE(sink.path.stat().st_mode)
        await sink.close()
        return mode

    assert asyncio.run(scenario()) == 0o660
    assert not (tmp_path / "s").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to any group")
def test_the_socket_may_be_given_to_a_group(tmp_path):
    async def body():
        path = tmp_path / "events.sock"
        sink = await UnixSocket.open(path, 4, lambda: b"hello\n", group="nogroup")
        there = path.stat()
        await sink.close()
        return stat.S_IMODE(there.st_mode), grp.getgrgid(there.st_gid).gr_name

    assert asyncio.run(body()) == (0o660, "nogroup")


def test_a_group_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"sinks\.socket\.group: there is no group 'nobodys'"):
        asyncio.run(UnixSocket.open(tmp_path / "events.sock", 4, lambda: b"", group="nobodys"))
    assert not (tmp_path / "events.sock").exists()


@pytest.mark.parametrize(("mode", "may"), [(0o777, False), (0o1777, True), (0o755, True)])
def test_a_folder_in_which_anybody_may_replace_the_socket_is_refused(tmp_path, mode, may):
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(mode)

    async def body():
        sink = await UnixSocket.open(folder / "events.sock", 4, lambda: b"")
        await sink.close()

    if may:
        asyncio.run(body())
    else:
        with pytest.raises(ConfigError, match="can be written by everybody"):
            asyncio.run(body())


def test_a_stale_socket_file_is_replaced_and_a_live_one_is_not(tmp_path):
    async def scenario():
        stale = socket.socket(socket.AF_UNIX)
        stale.bind(str(tmp_path / "s"))
        stale.close()  # the file stays behind, nobody answers
        first = await opened(tmp_path / "s")
        with pytest.raises(KwsdError, match="another kwsd answers") as error:
            await opened(tmp_path / "s")
        assert error.value.exit_code == 69
        assert (await read_lines(first.path, 1))[0]["type"] == "hello", "the first still answers"
        await first.close()

    asyncio.run(scenario())


def test_a_file_in_the_way_is_not_removed(tmp_path):
    (tmp_path / "s").write_text("precious")
    with pytest.raises(ConfigError, match="in the way"):
        asyncio.run(opened(tmp_path / "s"))
    assert (tmp_path / "s").read_text() == "precious"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RUNTIME_DIRECTORY": "{}/run/kwsd"}, "run/kwsd/events.sock"),
        ({"RUNTIME_DIRECTORY": "", "XDG_RUNTIME_DIR": "{}"}, "kwsd/events.sock"),
    ],
)
def test_auto_finds_the_runtime_folder(environment, expected, tmp_path, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    assert events_path() == tmp_path / expected


def test_who_only_asks_makes_no_folder(kwsd, tmp_path):
    (tmp_path / "here").mkdir()
    kwsd("ctl", "status", more={"XDG_RUNTIME_DIR": str(tmp_path / "here")})
    assert list((tmp_path / "here").iterdir()) == []
