"""Events for an MQTT broker, and commands from it; found by Home Assistant.

Detections go to `kwsd/<site>/<stream>/detection`, all other events to `kwsd/<site>/event`, with QoS 1 and not retained.
While the broker is away they wait, as long as they are worth something and as many as there is room for; what was
dropped is told when it is back. What is retained says how things are: who is available and muted, and thresholds.
"""

import asyncio
import contextlib
import functools
import json
import logging
import math
import secrets
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

import msgspec

from kwsd import home_assistant
from kwsd.config import MqttConfig
from kwsd.control import Command, Mute, Threshold, Unmute
from kwsd.errors import ConfigError
from kwsd.event import (
    GONE,
    Answer,
    AudioLost,
    AudioRestored,
    BrokerLost,
    BrokerRestored,
    Event,
    Heard,
    KeywordState,
    Line,
    Muted,
    Ready,
    Reload,
    StatusNow,
    StreamJoined,
    StreamLeft,
    ThresholdSet,
)
from kwsd.home_assistant import Setting, Topics
from kwsd.sinks.broker import Broker, is_late, let_go, make_client, reason_of, watch_while_open

if TYPE_CHECKING:
    from aiomqtt import Client, Message

log = logging.getLogger("kwsd")

KEEPALIVE_S = 15  # how often the broker is asked whether it is there
PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # between attempts; the last for ever
HELD_S = 5.0  # a connection that was lost sooner counts as an attempt
FLUSH_S = 0.8  # how long `close` waits for the broker to take what is queued, and ...
GOODBYE_S = 0.2  # ... to hang up
AGAIN_S = 0.1  # Python 3.11 forgets that a task is to end if just then comes what it waits for
CLEAR_S = 30.0  # how long to clear what will not be kept up any more, which nobody waits for
MOST_COMMANDS = 64  # that wait; more are dropped
MOST_AWAY = 64  # satellites that left and are still known
LOOK_BACK_S = 2.0  # how long we listen for what was retained before
SETTLE_S = 0.2  # changes in so short a time are told together
OF_STATE = (Ready, Reload, StreamJoined, StreamLeft, AudioLost, AudioRestored, Muted, ThresholdSet)


@dataclass(frozen=True)
class Host:
    """How the daemon is asked and told."""

    version: str
    status: Callable[[], StatusNow]
    obey: Callable[[Command], Awaitable[Answer]]
    report: Callable[[BrokerLost | BrokerRestored], None]


@dataclass(frozen=True)
class Note:
    """Something to be told."""

    topic: str
    payload: bytes
    born: float = 0.0  # monotonic s, of what waits to be told
    retained: bool = False


class Mqtt:
    """One broker, from `read_broker`."""

    def __init__(self, config: MqttConfig, broker: Broker, host: Host, before: "Mqtt | None" = None) -> None:
        """Begins to connect as soon as the one `before` is closed. A broker that is not there is waited for."""
        self._config, self._broker, self._host = config, broker, host
        self._topics = Topics(config.site)
        self._client: Client  # once `before` is closed
        self._notes: deque[Note] = deque()
        self._ready = asyncio.Event()
        self._dropped = 0
        self._lost_at: float | None = None  # monotonic s
        self._announced: dict[str, bytes] = {}  # retained messages of this connection, by topic
        self._left: dict[str, bytes] = {}  # of earlier ones, by topic; what to say instead if nobody is behind it
        self._changed = asyncio.Event()  # they may not be what they should be
        self._states_due = asyncio.Event()
        self._known: dict[str, None] = {}  # streams that are here, or were; the last seen last
        self._discovered: tuple[object, dict[str, bytes]] = (None, {})  # what it was made from, and what was
        self._under_way: list[Note] = []  # which the broker has or has not
        self._suspect: Note | None = None  # over which the connection was lost last
        self._refused: dict[str, bytes] = {}  # retained messages that the broker does not take, by topic
        self._announced_all = False  # by this connection
        self._closing = False
        self._after: Mqtt | None = None  # which comes after us
        # The same for every connection, so that the broker takes over: a dead one's will comes before we are online.
        self._name = f"kwsd-{home_assistant.slug(config.site)[:40]}-{secrets.token_hex(4)}"
        self._task = asyncio.get_running_loop().create_task(self._stay_connected(before))
        self._task.add_done_callback(_raise)

    def __call__(self, event: Event, line: Line) -> None:
        """Queue an event; the oldest goes if the queue is full."""
        if len(self._notes) >= self._config.queue and not isinstance(event, BrokerRestored):  # which says how many go
            self._notes.popleft()
            self._dropped += 1
        topic = self._topics.detection(event.stream) if isinstance(event, Heard) else self._topics.events
        self._notes.append(Note(topic, line.rstrip(), time.monotonic()))
        if isinstance(event, StreamLeft) and event.reason == "reload":
            self._known.pop(event.stream, None)  # for good; a satellite is only away
        if isinstance(event, OF_STATE):
            self._changed.set()
        self._ready.set()

    def look_again(self) -> None:
        """Things may not be what was announced."""
        self._changed.set()

    @property
    def problem(self) -> str | None:
        """What is wrong with the connection."""
        if self._lost_at is None:
            return None
        return f"MQTT broker {self._broker.name} is lost for {time.monotonic() - self._lost_at:.0f} s"

    async def close(self, after: "Mqtt | None" = None) -> None:
        """Tell what is queued and that we are gone, but do not wait long for a broker that does not answer. What the
        one that comes `after` us will not keep up is cleared."""
        self._closing, self._after = True, after
        self._ready.set()
        patience_s = CLEAR_S if self._outdated() else FLUSH_S
        _, late = await asyncio.wait({self._task}, timeout=patience_s if self._lost_at is None else 0.0)
        if late and hasattr(self, "_client"):
            let_go(self._client)  # without a goodbye, after which the broker would keep our last will to itself
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=GOODBYE_S)

    # --- the connection ---

    async def _stay_connected(self, before: "Mqtt | None") -> None:
        from aiomqtt import MqttError

        if before is not None:  # which says last of all that the site is offline
            await before.close(self)
            self._take_over(before)
        attempt = 0
        while not self._closing:
            self._client = self._new_client()
            begun, hung_up = math.inf, True  # monotonic s
            try:
                async with self._client:
                    begun = time.monotonic()
                    await self._serve()
                return
            except (MqttError, OSError, ValueError) as error:  # ValueError: a broker whose topics are no text
                self._note_loss(reason_of(error))
                hung_up = not is_late(error)
            finally:
                let_go(self._client)
            if self._announced_all:
                self._refused.clear()  # the broker may be another one, or take more, when it is back
            if self._drop_what_is_refused(hung_up) or time.monotonic() - begun >= HELD_S:
                attempt = 0
            await asyncio.sleep(PAUSES_S[min(attempt, len(PAUSES_S) - 1)])
            attempt += 1

    def _take_over(self, before: "Mqtt") -> None:
        """What it could not tell. Nobody waits for it where another site is told of."""
        self._lost_at = before._lost_at
        self._dropped += before._dropped
        if before._config.site == self._config.site:
            self._notes.extendleft(reversed(before._notes))
        else:
            self._dropped += len(before._notes)
        while len(self._notes) > self._config.queue:
            self._notes.popleft()
            self._dropped += 1

    def _new_client(self) -> "Client":
        """For one connection: at the next one it would send once more what it had no answer to, as we do."""
        from aiomqtt import Will

        client = make_client(
            self._broker,
            identifier=self._name,
            will=Will(self._topics.availability, b"offline", qos=1, retain=True),
            keepalive=KEEPALIVE_S,
            queue_type=functools.partial(_Commands, self._is_command),
            max_queued_incoming_messages=MOST_COMMANDS,
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],  # or every second message takes 40 ms
        )
        watch_while_open(client)
        return client

    def _note_loss(self, reason: str) -> None:
        if self._lost_at is None:
            self._lost_at = time.monotonic()
            log.warning("MQTT broker %s is lost: %s", self._broker.name, reason)
            self._host.report(BrokerLost(broker=self._broker.name, reason=reason))
        else:
            log.info("MQTT broker %s: %s", self._broker.name, reason)

    async def _serve(self) -> None:
        """Until we close. Raises MqttError when the connection is lost."""
        self._announced, self._left, self._announced_all = {}, {}, False
        for wanted in ("+/mute/set", "threshold/+/set", "availability"):
            await self._client.subscribe(f"{self._topics.base}/{wanted}", qos=1)
        if self._config.discovery:
            await self._client.subscribe(f"{self._config.discovery}/status", qos=1)
        await _first_of(self._tell, self._take_commands)
        for topic in self._outdated():
            await self._client.publish(topic, b"", qos=1, retain=True)
        stays = self._after is None or self._after._config.site == self._config.site
        await self._client.publish(self._topics.availability, b"offline", qos=1, retain=stays)

    def _outdated(self) -> list[str]:
        """Topics where something is retained that will not be kept up by who comes after us."""
        after = self._after._config if self._after is not None else self._config
        if after.site != self._config.site:
            return [*self._announced, *self._left]
        if after.discovery != self._config.discovery:
            return [topic for topic in (*self._announced, *self._left) if not self._topics.has(topic)]
        return []

    def _note_return(self) -> None:
        self._drop_what_is_old()
        dropped, self._dropped = self._dropped, 0
        if self._lost_at is None and not dropped:
            log.info("MQTT broker %s: connected", self._broker.name)
            return
        now = time.monotonic()
        gap_s, self._lost_at = round(now - (self._lost_at or now), 1), None
        log.warning("MQTT broker %s is back after %.1f s; %d events were dropped", self._broker.name, gap_s, dropped)
        self._host.report(BrokerRestored(broker=self._broker.name, gap_s=gap_s, dropped=dropped))

    def _drop_what_is_old(self) -> None:
        """A command that was said minutes ago is not meant any more."""
        oldest = time.monotonic() - self._config.keep_s
        while self._config.keep_s and self._notes and self._notes[0].born < oldest:
            self._notes.popleft()
            self._dropped += 1

    def _drop_what_is_refused(self, hung_up: bool) -> bool:
        """A note over which the connection was lost twice in a row, as over one that is longer than the broker takes:
        of what is retained, until the connection is lost another time. Whether there was one. A broker that only was
        late with its answer refuses nothing that is retained."""
        under_way, self._under_way = self._under_way, []
        if not under_way:
            return False
        # Of two, the event: what is retained is sent at every connection before any, and so will be found out alone.
        tried, before = min(under_way, key=lambda note: note.retained), self._suspect
        self._suspect = tried if hung_up or not tried.retained else None
        if self._suspect is None or tried != before:
            return False
        if tried.retained:
            self._refused[tried.topic] = tried.payload
        elif self._notes and self._notes[0] is tried:
            self._notes.popleft()
            self._dropped += 1
        else:
            return False
        size = len(tried.payload)
        log.warning("MQTT %s: the broker hangs up over a message of %d bytes, which is dropped", tried.topic, size)
        return True

    # --- telling ---

    async def _tell(self) -> None:
        """Returns when all is told and we close."""
        await self._announce()
        self._announced_all = True
        self._note_return()
        await _first_of(self._tell_notes, self._keep_announced, self._tell_states, self._look_back)

    async def _tell_notes(self) -> None:
        """Each is kept until the broker has it. Returns when all is told and we close."""
        while True:
            self._drop_what_is_old()
            if self._notes:
                note = self._notes[0]
                await self._publish(note)
                if self._notes and self._notes[0] is note:  # the queue did not overflow meanwhile
                    self._notes.popleft()
            elif self._closing:
                return
            elif self._dropped:  # it is there, but too slow
                self._note_return()
            else:
                self._ready.clear()
                await self._ready.wait()

    async def _publish(self, note: Note) -> None:
        """Until the broker has it. Raises MqttError if the connection is lost before."""
        self._under_way.append(note)
        await self._client.publish(note.topic, note.payload, qos=1, retain=note.retained)
        self._under_way.remove(note)
        if self._suspect == note:
            self._suspect = None

    async def _keep_announced(self) -> None:
        while True:
            await self._changed.wait()
            await self._announce()
            await asyncio.sleep(SETTLE_S)

    async def _announce(self) -> None:
        """Have retained messages say how things are, where they do not yet."""
        self._changed.clear()
        said = False
        wanted = self._retained(self._host.status())
        gone = self._gone(wanted)
        for topic, payload in (gone | wanted).items():
            if payload not in (self._announced.get(topic), self._refused.get(topic)):
                self._announced[topic] = payload  # before it is confirmed: meanwhile it may be contradicted
                await self._publish(Note(topic, payload, retained=True))
                self._refused.pop(topic, None)
                said = said or topic.endswith("/config")
        for topic in gone:
            self._announced.pop(topic, None)
            self._left.pop(topic, None)
        if said:  # somebody may know of new entities now
            self._states_due.set()

    def _gone(self, wanted: Mapping[str, bytes]) -> dict[str, bytes]:
        """What is retained and not wanted any more, by topic, and what is to be said instead. The entities of a
        satellite that was not here yet are: it may come."""
        known = {None, *map(home_assistant.slug, self._known)} if self._left else set()
        left = {topic: instead for topic, instead in self._left.items() if self._owner(topic) in known}
        said = left | dict.fromkeys(self._announced, b"")
        return {topic: instead for topic, instead in said.items() if topic not in wanted}

    def _owner(self, topic: str) -> str | None:
        """The slug of the stream whose entity it is; None: it is none of a stream's."""
        return None if self._topics.has(topic) else home_assistant.owner(topic)

    def _retained(self, status: StatusNow) -> dict[str, bytes]:
        """What every retained message should be, by topic."""
        topics, wanted = self._topics, dict[str, bytes]()
        here = {state.stream: state for state in status.streams if not state.passing}
        away = self._those_away(here)
        if self._config.discovery:
            wanted |= self._discovery(self._config.discovery, (*here, *away), status.keywords)
        for keyword, known in status.keywords.items():
            wanted[topics.threshold(keyword)] = f"{known.threshold:g}".encode()
        for stream, state in here.items():
            wanted[topics.mute(stream)] = b"ON" if state.muted else b"OFF"
            wanted[topics.stream_availability(stream)] = b"offline" if state.ailment in GONE else b"online"
        for stream in away:
            wanted[topics.stream_availability(stream)] = b"offline"
        wanted[topics.availability] = b"online"
        return wanted

    def _discovery(self, prefix: str, streams: tuple[str, ...], keywords: dict[str, KeywordState]) -> dict[str, bytes]:
        """Made anew only when something of it is: with hundreds of streams it takes its time."""
        made_from = streams, {keyword: state.lowest for keyword, state in keywords.items()}
        if made_from != self._discovered[0]:
            setting = Setting(self._topics, prefix, self._host.version, self._config.state_s)
            found = home_assistant.discovery(setting, streams, keywords)
            self._discovered = made_from, {topic: json.dumps(payload).encode() for topic, payload in found}
        return self._discovered[1]

    def _those_away(self, here: Mapping[str, object]) -> list[str]:
        """Who was here and is not. Not to be had from what is announced: of that the broker may not have all yet."""
        for stream in here:
            self._known.pop(stream, None)
            self._known[stream] = None
        away = [stream for stream in self._known if stream not in here]
        for stream in away[:-MOST_AWAY]:
            del self._known[stream]
        return away[-MOST_AWAY:]

    async def _tell_states(self) -> None:
        while True:
            self._states_due.clear()
            for state in self._host.status().streams:
                if not state.passing:
                    await self._client.publish(self._topics.state(state.stream), msgspec.json.encode(state))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.state_s):
                    await self._states_due.wait()

    # --- being told ---

    async def _look_back(self) -> None:
        """Have the broker say what earlier connections left. Not for long: all that we say comes back as well, and
        each time that may hold up by 40 ms what it says next."""
        earlier = [f"{self._topics.base}/{said}" for said in ("threshold/+", "+/availability")]
        if self._config.discovery:
            earlier.append(home_assistant.all_of(self._config.discovery, self._config.site))
        for topic in earlier:
            await self._client.subscribe(topic)  # with QoS 0: of what is to be confirmed brokers keep only so many
        await asyncio.sleep(LOOK_BACK_S)
        for topic in earlier:
            await self._client.unsubscribe(topic)
        await asyncio.Event().wait()  # the others go on

    def _is_command(self, message: "Message") -> bool:
        """Whether it is to be obeyed. Of all else is taken note, and of what we said ourselves is none to be taken."""
        topic = str(message.topic)
        if message.topic.matches(f"{self._topics.base}/+/+/set"):
            return True
        if topic == f"{self._config.discovery}/status":
            if message.payload == b"online":
                self._announced = {}  # Home Assistant was started: all of it once more
                self._changed.set()
        elif topic == self._topics.availability:  # a will that comes late says that we are gone
            if message.payload != b"online" and self._announced.pop(topic, b""):
                self._changed.set()
        elif message.retain and message.payload != b"offline" and topic not in self._announced:
            self._left[topic] = b"offline" if message.payload == b"online" else b""
            self._changed.set()
        return False

    async def _take_commands(self) -> None:
        async for message in self._client.messages:
            if message.retain:
                log.warning("MQTT %s: is retained, and ignored: it would come again and again", message.topic)
            else:
                await self._obey(message)

    async def _obey(self, message: "Message") -> None:
        """Do as a `/set` says, or say why not, and in any case how things are."""
        try:
            answer = await self._host.obey(self._command(message))
            refusal = answer.error
        except ConfigError as error:
            refusal = str(error)
        topic = str(message.topic).removesuffix("/set")
        if refusal is not None:
            log.warning("MQTT %s: %s", message.topic, refusal)
        self._announced.pop(topic, None)  # whoever changed it shows what it asked for until it is told otherwise
        self._changed.set()

    def _command(self, message: "Message") -> Command:
        """Raises ConfigError for a payload that is none of those a topic takes."""
        *_, first, second, _ = str(message.topic).split("/")
        said = message.payload.decode(errors="replace") if isinstance(message.payload, bytes) else str(message.payload)
        if first == "threshold":
            try:
                value = float(said)
            except ValueError:
                value = -1.0
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"{said[:40]!r} is no threshold; send a number from 0 to 1")
            return Threshold(keyword=unquote(second), value=value)
        if said not in ("ON", "OFF"):
            raise ConfigError(f"{said[:40]!r}: send ON or OFF")
        streams = (unquote(first),)
        return Mute(streams=streams) if said == "ON" else Unmute(streams=streams)


class _Commands(asyncio.Queue["Message"]):
    """Those that wait to be obeyed. All else that comes is sorted out at once: a broker may have thousands retained."""

    def __init__(self, is_command: "Callable[[Message], bool]", maxsize: int) -> None:
        super().__init__(maxsize)
        self._is_command = is_command
        self._overflows = False

    def put_nowait(self, message: "Message") -> None:
        """Where the library puts what comes."""
        if not self._is_command(message):
            return
        if not self.full():
            super().put_nowait(message)
            self._overflows = False
        elif not self._overflows:
            waiting = self.maxsize
            log.warning("MQTT %s: %d commands wait already; more are dropped until one is done", message.topic, waiting)
            self._overflows = True


async def _first_of(*works: Callable[[], Awaitable[None]]) -> None:
    """Until one of them ends, with which the others are over. Raises what one of them raised."""
    tasks = [asyncio.ensure_future(work()) for work in works]
    for task in tasks:
        task.add_done_callback(_ask_why)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        while still := [task for task in tasks if not task.done()]:
            for task in still:
                task.cancel()
            await asyncio.wait(still, timeout=AGAIN_S)
    for task in tasks:
        if not task.cancelled() and (failure := task.exception()) is not None:
            raise failure


def _ask_why(task: "asyncio.Task[None]") -> None:
    """Whatever becomes of us: an exception that nobody asks for is a fault to asyncio."""
    if not task.cancelled():
        task.exception()


def _raise(task: "asyncio.Task[None]") -> None:
    """What nobody expected ends the daemon."""
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error
