"""Programs and webhooks that events start: a few at once, for a limited time, each failure an event of its own."""

import asyncio
import contextlib
import os
import shutil
import signal
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kwsd.config import OF_HOOKS, HookConfig
from kwsd.control import Subscribe, check_known
from kwsd.errors import UNAVAILABLE, ConfigError
from kwsd.event import Event, HookFailed, Line, id_of
from kwsd.paths import FILE, kind_of
from kwsd.secret import read_secret
from kwsd.tls import trusting

if TYPE_CHECKING:
    from aiohttp import ClientSession

SHELL = "/bin/sh"
MERCY_S = 1.0  # from SIGTERM to SIGKILL; `close` waits as long for those that run
COMPLAINT = 2000  # bytes of stderr, of which the last line is told
SAID_S = 0.1  # for it to arrive after the end
MOST_LEFT = 64  # programs in the background whose stderr is kept open
NOT_THEIRS = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS")  # between systemd and us


@dataclass(frozen=True)
class Failure(Exception):
    """Why a hook did not do what it should."""

    reason: str


@dataclass(frozen=True)
class Hook:
    """One entry of `hooks:`, made ready."""

    name: str
    config: HookConfig
    wish: Subscribe
    command: tuple[str, ...] = ()  # empty: a webhook
    token: str = ""
    folder: Path = Path()  # where it is started: relative paths in a command are the config's, too


@dataclass(frozen=True)
class Call:
    """An event for a hook."""

    id: str
    event: Event
    line: Line


class Hooks:
    """All of them, whatever is reloaded. `failed` is told what went wrong, `ended` which ran and how that ended."""

    def __init__(
        self,
        hooks: Sequence[Hook],
        failed: Callable[[HookFailed], None],
        ended: Callable[[str, str], None] = lambda *_: None,
    ) -> None:
        self._failed, self._ended = failed, ended
        self._hooks: dict[str, Hook] = {}
        self._running: dict[str, set[asyncio.Task[None]]] = {}
        self._waiting: dict[str, deque[Call]] = {}
        self._session: ClientSession | None = None
        self.adopt(hooks)

    def adopt(self, hooks: Sequence[Hook]) -> None:
        """Go on with these. What runs comes to its end; what waits for a hook that is gone, or another one now, is not
        started: a name may be but a place in the list."""
        before, self._hooks = self._hooks, {hook.name: hook for hook in hooks}
        for name, hook in before.items():
            if name not in self._hooks or self._hooks[name].config != hook.config:
                self._give_up(name, "not started: the hook is gone from the configuration")
        for name in self._hooks:
            self._running.setdefault(name, set())
            self._waiting.setdefault(name, deque())

    def __call__(self, event: Event, line: Line) -> None:
        """Start what this event starts, or have it wait."""
        for name, hook in self._hooks.items():
            if hook.wish.wants(event):
                call = Call(id_of(line), event, line)
                if len(self._running[name]) < hook.config.at_once:
                    self._start(hook, call)
                elif len(self._waiting[name]) < hook.config.waiting:
                    self._waiting[name].append(call)
                else:
                    reason = f"not started: {hook.config.at_once} run and {hook.config.waiting} wait"
                    self._complain(name, call, reason)

    async def close(self) -> None:
        """Let those that run and wait come to an end, shortly; then end them."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MERCY_S):
                while running := self._all_running():
                    await asyncio.wait(running)
        for name in self._waiting:
            self._give_up(name, "not started: kwsd stops")
        late = self._all_running()
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def _all_running(self) -> list[asyncio.Task[None]]:
        return [task for tasks in self._running.values() for task in tasks]

    def _give_up(self, name: str, reason: str) -> None:
        while self._waiting[name]:
            self._complain(name, self._waiting[name].popleft(), reason)

    def _start(self, hook: Hook, call: Call) -> None:
        task = asyncio.get_running_loop().create_task(self._run(hook, call))
        running = self._running[hook.name]
        running.add(task)

        def go_on(task: asyncio.Task[None]) -> None:
            running.discard(task)
            now = self._hooks.get(hook.name)
            if self._waiting[hook.name] and now is not None and not task.cancelled():
                self._start(now, self._waiting[hook.name].popleft())
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error  # what nobody expected ends the daemon

        task.add_done_callback(go_on)

    async def _run(self, hook: Hook, call: Call) -> None:
        try:
            await (_run_program(hook, call) if hook.command else self._post(hook, call))
            self._ended(hook.name, "done")
        except Failure as failure:
            self._complain(hook.name, call, failure.reason)
        except asyncio.CancelledError:
            self._complain(hook.name, call, "ended, for kwsd stops")
            raise

    def _complain(self, name: str, call: Call, reason: str) -> None:
        self._ended(name, "failed")
        stream, keyword = (getattr(call.event, field, None) for field in ("stream", "keyword"))
        failed = HookFailed(hook=name, reason=reason, of=call.id, stream=stream, keyword=keyword)
        asyncio.get_running_loop().call_soon(self._failed, failed)  # not amid an event that is being told

    async def _post(self, hook: Hook, call: Call) -> None:
        from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector

        self._session = self._session or ClientSession(connector=TCPConnector(ssl=trusting()))
        headers = {"Content-Type": "application/json"}
        if hook.token:
            headers["Authorization"] = f"Bearer {hook.token}"
        limit = ClientTimeout(total=hook.config.within_s)
        request = self._session.post(
            str(hook.config.post), data=call.line, headers=headers, timeout=limit, allow_redirects=False
        )
        try:
            async with request as response:
                if not response.ok or response.status >= 300:
                    raise Failure(f"HTTP {response.status} {response.reason}")
        except TimeoutError:
            raise Failure(f"no answer within {hook.config.within_s:g} s") from None
        except (ClientError, OSError, ValueError) as error:
            raise Failure(str(error) or type(error).__name__) from None


def make_hooks(configs: Iterable[HookConfig], keywords: Sequence[str], resolve: Callable[[str], Path]) -> list[Hook]:
    """The hooks of a configuration. Raises ConfigError for a keyword nobody listens for, a program that is not there,
    a secret that cannot be read, or a library that is missing."""
    made: list[Hook] = []
    for i, config in enumerate(configs):
        where = f"hooks.{i}"
        try:
            check_known(config.keywords or (), keywords, "keyword")
        except ConfigError as error:
            raise ConfigError(f"{where}.keywords: {error}") from None
        wish = Subscribe(types=config.events, streams=config.streams, keywords=config.keywords)
        token = read_secret(config.token_file, resolve, f"{where}.token_file") if config.token_file else ""
        if config.post is not None:
            _need_aiohttp(where)
        name = config.name or where
        if name in [hook.name for hook in made]:
            raise ConfigError(f"{where}.name: {name!r} is taken; give every hook a name of its own")
        made.append(Hook(name, config, wish, _command(config, where, resolve), token, resolve("")))
    return made


def _command(config: HookConfig, where: str, resolve: Callable[[str], Path]) -> tuple[str, ...]:
    if config.shell is not None:
        return (SHELL, "-c", config.shell)
    if config.run is None:
        return ()
    named, *arguments = config.run
    path = resolve(named).absolute()  # `./prog` beside the config is no `prog` of the system's
    program = shutil.which(str(path) if "/" in named else named)
    if program is None and "/" in named and kind_of(path) == FILE:
        raise ConfigError(f"{where}.run: {path} may not be run; chmod +x it")
    if program is None:
        raise ConfigError(f"{where}.run: {named} is not there, or no program; install it, or name its whole path")
    return (program, *arguments)


def _need_aiohttp(where: str) -> None:
    try:
        import aiohttp  # noqa: F401 - to see whether it is there
    except ImportError:
        raise ConfigError(
            f"{where}.post: aiohttp is not installed; pip install 'kwsd[http]'", exit_code=UNAVAILABLE
        ) from None


async def _run_program(hook: Hook, call: Call) -> None:
    """Raises Failure for an exit code, a signal, or a time limit."""
    complaints = _Complaints()
    try:
        await complaints.open()
        process = await asyncio.create_subprocess_exec(
            *hook.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,  # ours is for events
            stderr=complaints.fd,
            env=_environment(call.event),
            cwd=hook.folder,
            start_new_session=True,  # a group of its own, to be ended as a whole
        )
    except (OSError, ValueError, RuntimeError) as error:  # the last: asyncio had no thread to wait for it in
        complaints.close()
        raise Failure(f"cannot be started ({getattr(error, 'strerror', None) or error})") from None
    try:
        async with asyncio.timeout(hook.config.within_s):
            await _feed(process.stdin, call.line)
            code = await process.wait()
        if code:
            how, said = f"signal {-code}" if code < 0 else f"exit code {code}", await complaints.last_line()
            raise Failure(f"{how}: {said}" if said else how)
    except TimeoutError:
        await _end(process)
        raise Failure(f"took longer than {hook.config.within_s:g} s, and was ended") from None
    except asyncio.CancelledError:
        await _end(process)
        raise
    finally:
        complaints.close()


class _Complaints:
    """A pipe for stderr of which the end is kept. One of asyncio's own would have us wait for whatever the program
    left running in the background."""

    def __init__(self) -> None:
        self.fd = -1  # to be written to
        self._said = b""
        self._pipe: asyncio.ReadTransport | None = None
        self._reading: asyncio.Future[None] | None = None

    async def open(self) -> None:
        """Raises OSError where there is no descriptor left."""
        out, self.fd = os.pipe()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        self._pipe, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(out, "rb", 0))
        self._reading = asyncio.ensure_future(self._read(reader))

    def close(self) -> None:
        """Ask no more. What the program left running may complain on, to nobody: a closed pipe would end it."""
        self._close_ours()
        if self._reading is not None and not self._reading.done():
            _LEFT[self._reading] = None
            self._reading.add_done_callback(lambda reading: _LEFT.pop(reading, None))
            if len(_LEFT) > MOST_LEFT:
                next(iter(_LEFT)).cancel()

    async def last_line(self) -> str:
        """What the program said last, once it ended."""
        self._close_ours()
        if self._reading is not None:
            await asyncio.wait({self._reading}, timeout=SAID_S)
        lines = self._said.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def _close_ours(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    async def _read(self, reader: asyncio.StreamReader) -> None:
        assert self._pipe is not None
        with contextlib.closing(self._pipe):
            while piece := await reader.read(COMPLAINT):
                self._said = (self._said + piece)[-COMPLAINT:]


_LEFT: dict["asyncio.Future[None]", None] = {}  # what programs left running and its complaints, the oldest first


async def _feed(stdin: asyncio.StreamWriter | None, line: Line) -> None:
    """A program need not read it."""
    assert stdin is not None
    with contextlib.suppress(OSError):
        stdin.write(line)
        await stdin.drain()
    stdin.close()


async def _end(process: asyncio.subprocess.Process) -> None:
    """With all that it started, even if nobody waits any more."""
    try:
        _kill_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MERCY_S):
                await process.wait()
    finally:
        _kill_group(process.pid, signal.SIGKILL)


def _kill_group(leader: int, number: signal.Signals) -> None:
    with contextlib.suppress(OSError):  # it is gone, or somebody else's by now, as of sudo: then it ends by itself
        os.killpg(leader, number)


def _environment(event: Event) -> dict[str, str]:
    """Ours, and the fields of the event."""
    ours = {name: value for name, value in os.environ.items() if name not in NOT_THEIRS}
    fields: dict[str, Any] = msgspec.to_builtins(event)
    plain = {name: value for name, value in fields.items() if isinstance(value, str | int | float)}
    told = {f"{OF_HOOKS}{name.upper()}": str(value).replace("\x00", "") for name, value in plain.items()}
    return ours | told
