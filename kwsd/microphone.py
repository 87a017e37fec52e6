"""Microphones: opened, and opened again whenever they stop delivering."""

import functools
import threading
import time
from collections.abc import Callable
from typing import Any

from kwsd.aside import start
from kwsd.ears import Ears, make_ears
from kwsd.errors import IO, AudioError, KwsdError
from kwsd.inlet import Inlet
from kwsd.portaudio import Device, PortAudio, borrow, give_back, quietly
from kwsd.proc import strangers_cpu_s

MOST_CHANNELS = 8  # of a real device
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 3.0  # before a device is tried again; each is twice the one before
SETTLED_S = 10.0  # a device that delivered for so long is tried again as soon as at first
FIRST_BLOCK_S = 5.0  # a device that was opened and delivers nothing for so long is closed again
BLOCK_LOOK_S = 0.1  # how often is looked for its first block
CLOSE_S = 0.5  # how long `stop` waits for a driver that may hang
SPIN_LOOK_S, SPIN_SHARE = 1.0, 0.5  # a thread that takes this share of this time and should end does not


class Microphone:
    """A PortAudio input device at its own rate; kwsd resamples, never the device."""

    live = True
    lead_in = False
    may_be_deaf = True

    def __init__(self, wanted: str | int, channel: int | None, block_ms: float, *, patient: bool = False) -> None:
        """`wanted` is as `PortAudio.find` takes it. Who is patient takes a device that is not there yet.

        Raises AudioError if it is not there, has no such channel, or refuses every usual rate."""
        self.wanted, self.channel, self._block_ms, self._patient = wanted, channel, block_ms, patient
        self.attempts = 0  # to open it again, ever
        self.fatal: KwsdError | None = None  # why this process can never hear it again
        self._device: Device | None = None
        self.rate, self.channels = 48_000, 1  # until it is there
        self._listened_to = [channel]
        self._inlets: list[Inlet] = []
        self._stream: Any = None
        self._ears: Ears | None = None  # blocks for any others are late and thrown away
        self._opened_at = -SETTLED_S
        self._pause = FIRST_PAUSE_S
        self._stopping = threading.Event()
        self._failure: KwsdError | None = None
        self._reopening: threading.Thread | None = None  # while it is: whoever holds the stream closes it
        self._starting = False  # the same
        self._handing_over = threading.Lock()
        self._audio: PortAudio = borrow()
        try:
            self._look_up()
        except AudioError as error:
            if not patient:
                give_back(self._audio)
                raise
            self._failure = error

    @property
    def block_s(self) -> float | None:
        """Seconds in a block, a whole number of frames."""
        return self._frames / self.rate

    @property
    def _frames(self) -> int:
        return round(self.rate * self._block_ms / 1000)

    @property
    def failure(self) -> KwsdError | None:
        """Why it delivers nothing, if it ought to."""
        return self._failure

    def is_the_one(self, wanted: str | int) -> bool:
        """Whether another stream that wants this means the same device."""
        if wanted == self.wanted or self._device is None:
            return wanted == self.wanted
        try:
            return bool(self._audio.find(wanted)["index"] == self._device["index"])
        except AudioError:  # one that is not there is another one
            return False

    def open_for(self, channel: int | None) -> None:
        """Before `start`: another stream listens to this channel. Raises AudioError if there is none."""
        self._listened_to.append(channel)
        if self._device is not None:
            self._look_up()

    def deliver_to(self, inlet: Inlet) -> None:
        """Every block from now on goes to this inlet, too."""
        self._inlets.append(inlet)
        if self._ears is not None:
            self._ears.add(inlet)

    def start(self, inlet: Inlet, wake: Callable[[], None]) -> None:
        """Open the device. Raises AudioError if it refuses."""
        self.deliver_to(inlet)
        if self._device is None:
            return
        with self._handing_over:
            if self._stopping.is_set():
                return
            self._starting = True
        try:
            self._open()
        except AudioError as error:
            if not self._patient:
                raise
            self._failure = error
        finally:
            with self._handing_over:
                self._starting, stopped = False, self._stopping.is_set()
            if stopped:
                self._leave()

    def recover(self) -> bool:
        """Open the device again, as often as it takes, in a thread of its own. What the old stream still delivers
        is not taken any more."""
        with self._handing_over:
            if self._reopening is None and not self._stopping.is_set():
                self._cover_ears()
                if time.monotonic() - self._opened_at >= SETTLED_S:
                    self._pause = FIRST_PAUSE_S
                reopening = threading.Thread(target=self._reopen, name="reopening", daemon=True)
                start(reopening)
                self._reopening = reopening
        return True

    def stop(self) -> None:
        """Close the device; a driver that hangs is not waited for."""
        with self._handing_over:
            if self._stopping.is_set():
                return
            self._stopping.set()
            self._cover_ears()
            closing = self._reopening
            if closing is None and not self._starting:  # who starts it closes it
                closing = _aside(self._leave)
        if closing is not None:
            closing.join(CLOSE_S)

    # --- the device ---

    @property
    def _name(self) -> str:
        return f"microphone {self._device['name'] if self._device else self.wanted!r}"

    def _look_up(self) -> None:
        """Which device it is, and how to open it. Raises AudioError."""
        if self._device is None:
            device = self._audio.find(self.wanted)
        else:
            device = self._audio.find_again(self.wanted, self._device["name"])
        channels = max(_channels_for(channel, device) for channel in self._listened_to)
        self.rate = self._audio.supported_rate(device, channels)
        self.channels, self._device = channels, device

    def _open(self) -> None:
        """Raises AudioError if it refuses."""
        assert self._device is not None
        ears = self._ears = make_ears(self._inlets, len(self._listened_to))

        def finished() -> None:
            if self._ears is ears:
                self._failure = AudioError(f"{self._name}: stopped delivering; was it unplugged?", exit_code=IO)

        self._stream = self._audio.open(self._device, (self.rate, self.channels, self._frames), ears, finished)

    def _cover_ears(self) -> None:
        """What the stream still delivers counts no more."""
        ears, self._ears = self._ears, None
        if ears is not None:
            ears.close()

    def took_us(self) -> list[float]:
        """How long the last blocks held up PortAudio, if that is known."""
        return self._ears.took_us() if self._ears else []

    def _close(self) -> None:
        """Waits for a driver that hangs, as it may go on. One that spins does not: PortAudio's thread for ALSA can fall
        into an endless loop when the sound server dies while a stream starts, and only the end of the process ends it.
        """
        stream, self._stream = self._stream, None
        if stream is None:
            return
        closing = _aside(functools.partial(stream.close, True))
        if closing is None:
            return
        closing.join(CLOSE_S)
        while closing.is_alive() and self.fatal is None:
            before = strangers_cpu_s()
            closing.join(SPIN_LOOK_S)
            after = strangers_cpu_s()
            most = max((after[thread] - before.get(thread, 0.0) for thread in after), default=0.0)
            if closing.is_alive() and most > SPIN_SHARE * SPIN_LOOK_S:
                self.fatal = AudioError(
                    f"{self._name}: PortAudio is in an endless loop after its device was lost; start kwsd anew",
                    exit_code=IO,
                )

    def _leave(self) -> None:
        self._close()
        if self.fatal is None:
            give_back(self._audio)

    # --- the thread that opens it again ---

    def _reopen(self) -> None:
        while True:
            self._close()  # may wait for a driver that hangs; once it does not, we go on
            while self.fatal is None and not self._stopping.wait(self._pause):
                self._pause = min(2 * self._pause, LONGEST_PAUSE_S)
                with quietly():
                    if self._delivers_again():
                        break
            with self._handing_over:
                stopped = self._stopping.is_set()
                # Until now `recover` left it to us, so we must not go while it is lost once more.
                if stopped or self.fatal is not None or self._failure is None:
                    self._reopening = None
                    break
        if stopped:
            self._leave()

    def _delivers_again(self) -> bool:
        self.attempts += 1
        first = self._inlets[0]
        before = first.blocks
        try:
            self._audio.look_again()
            self._look_up()
            for inlet in self._inlets:
                inlet.reopen(self.rate, self.channels)
            self._failure = None
            self._open()
        except AudioError as error:
            self._failure = error
            return False
        deadline = time.monotonic() + FIRST_BLOCK_S
        while first.blocks == before:
            if self._stopping.wait(BLOCK_LOOK_S) or self._failure or time.monotonic() > deadline:
                self._failure = self._failure or AudioError(f"{self._name}: was opened and delivers nothing")
                self._cover_ears()
                self._close()
                return False
        self._opened_at = time.monotonic()
        return True


def _aside(close: Callable[[], None]) -> threading.Thread | None:
    """A thread that closes, since a driver may hang; None if there was none to be had, and it is done."""
    closing = threading.Thread(target=close, name="closing", daemon=True)
    try:
        start(closing)
    except KwsdError:
        close()
        return None
    return closing


def _channels_for(channel: int | None, device: Device) -> int:
    """How many to open for one of them, or for all. Raises AudioError if there is no such channel."""
    most = int(device["max_input_channels"])
    if channel is not None and channel >= most:
        raise AudioError(
            f"microphone {device['name']!r}: has {most} channels, no channel {channel + 1}; choose another"
        )
    # More channels than any microphone has are those of a sound server, which makes them up from one or two.
    return channel + 1 if channel is not None else most if most <= MOST_CHANNELS else 2


class OtherChannel:
    """One more stream from a microphone that another stream opens: many a device can be opened but once."""

    live = True
    lead_in = False
    may_be_deaf = True

    def __init__(self, microphone: Microphone, channel: int | None) -> None:
        """Raises AudioError if it has no such channel."""
        microphone.open_for(channel)
        self.channel = channel
        self._microphone = microphone

    @property
    def rate(self) -> int:
        """The microphone's, in Hz."""
        return self._microphone.rate

    @property
    def channels(self) -> int:
        """In every block, as many as the streams need together."""
        return self._microphone.channels

    @property
    def block_s(self) -> float | None:
        """The microphone's."""
        return self._microphone.block_s

    def start(self, inlet: Inlet, wake: Callable[[], None]) -> None:
        """Begin to deliver."""
        self._microphone.deliver_to(inlet)

    def stop(self) -> None:
        """The stream that opened the microphone closes it."""

    @property
    def failure(self) -> KwsdError | None:
        """Why the microphone delivers nothing, if it ought to."""
        return self._microphone.failure

    @property
    def fatal(self) -> KwsdError | None:
        """Why this process can never hear the microphone again."""
        return self._microphone.fatal

    @property
    def attempts(self) -> int:
        """To open the microphone again, ever."""
        return self._microphone.attempts

    def recover(self) -> bool:
        """Open the microphone again, for all its streams."""
        return self._microphone.recover()
