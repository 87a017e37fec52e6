"""Satellites as the inference thread meets them, looks after them and parts with them."""

import functools
from collections.abc import Callable, Iterator

from kwsd.audio_format import seconds
from kwsd.config import CaptureConfig
from kwsd.event import AudioFault, AudioHealed, Line, StreamJoined, StreamLeft
from kwsd.listener import Left, Listener
from kwsd.pipeline import Pipeline, StreamInfo
from kwsd.ring import RingBuffer
from kwsd.rounds import Rounds

FREE = StreamInfo("", live=True, lead_in=False)  # a slot without a satellite


class Satellites:
    """Each in a slot behind the streams of the config; without a listener there are none. They belong to the inference
    thread, but anybody may ask who is here, and who is told to call `then` lets them go."""

    def __init__(
        self,
        listener: Listener | None,
        streams: list[StreamInfo],
        capture: CaptureConfig,
        tell: Callable[[StreamJoined | StreamLeft], None],
        then: Callable[[Callable[[], None]], None],
    ) -> None:
        """In `streams` each is described as long as it is here. `tell` gets who came and who went, and `then` what is
        to be called when that is dealt with."""
        self._listener, self._streams, self._tell, self._then = listener, streams, tell, then
        self.slots: dict[str, int] = {}  # of those that are here, by name
        self._leaving: dict[int, Left] = {}  # those that are not scored to the end yet
        self._rounds = Rounds(capture)  # at their microphones

    def adopt(self, capture: CaptureConfig) -> None:
        """What counts as deaf from now on. May be called from any thread."""
        self._rounds.adopt(capture)

    def is_passing(self, name: str) -> bool:
        """Whether this one is a client of the moment."""
        slot = self.slots.get(name)
        return slot is not None and self._streams[slot].passing

    def fault(self, slot: int) -> str | None:
        """What its microphone has. May be asked from any thread."""
        return self._rounds.fault(slot)

    def tell(self, name: str, line: Line) -> None:
        """An event for the one it is about, if it is about one. May be called from any thread."""
        slot = self.slots.get(name)
        if slot is not None and self._listener is not None:
            self._listener.tell(slot, line)

    def meet(self, pipeline: Pipeline) -> None:
        """Who came and who went since, before anything of theirs is scored."""
        while self._listener is not None and self._listener.news:
            news = self._listener.news.popleft()
            if isinstance(news, Left):
                self._leaving[news.slot] = news
                continue
            self._streams[news.slot] = StreamInfo(
                news.name, live=True, lead_in=False, origin=news.origin, passing=news.passing
            )
            self.slots[news.name] = news.slot
            if not news.passing:
                self._rounds.join(news.slot, news.name, news.origin)
            pipeline.forget(news.slot)
            self._tell(StreamJoined(stream=news.name, rate=news.rate, channels=news.channels))

    def part(self, pipeline: Pipeline) -> None:
        """With those whose last window is scored: their slot may go to another."""
        for slot, left in list(self._leaving.items()):
            if pipeline.scored_all_of(slot):
                name = self._streams[slot].name
                del self._leaving[slot]
                self._rounds.part(slot)
                pipeline.forget(slot)
                self._then(functools.partial(self._let_go, slot, name))
                self._tell(StreamLeft(stream=name, reason=left.reason, heard_s=seconds(left.heard)))

    def look(self, now: float, ring: RingBuffer) -> Iterator[AudioFault | AudioHealed]:
        """See to their microphones, at a monotonic time in seconds; what is new of them."""
        if self._listener is not None:
            yield from self._rounds.look(now, ring, self._listener.has_paused)

    def _let_go(self, slot: int, name: str) -> None:
        """Nothing more was heard of this satellite. Who is told so, and then asks how things are, must not find it."""
        assert self._listener is not None
        del self.slots[name]
        self._streams[slot] = FREE
        self._listener.release(slot, name)
