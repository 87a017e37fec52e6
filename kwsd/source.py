"""Where samples come from: a microphone, an audio file, raw PCM from a pipe. Sources know nothing of words."""

import contextlib
import difflib
import errno
import fnmatch
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from kwsd.audio_format import SAMPLE_RATE, WINDOW
from kwsd.errors import IO, NO_PERMISSION, UNAVAILABLE, AudioError, ConfigError, KwsdError
from kwsd.inlet import Inlet
from kwsd.pcm import Frames, PcmDecoder

if TYPE_CHECKING:
    import sounddevice

BLOCK_S = 0.02  # of audio a file delivers at once
READ_S = 0.1  # of audio read from a pipe at once, if so much is there
USUAL_RATES = (48_000, 44_100, 16_000, 32_000, 96_000, 8_000)  # Hz, tried when a device refuses its own default
MOST_CHANNELS = 8  # of a real device
TAIL_S = WINDOW / SAMPLE_RATE  # silence after a source that ends, so that its last word crosses the window
PIPE_HINT = "pipe audio into kwsd, e.g. arecord -f S16_LE -r 16000 -c 1 | kwsd run --source -"


class Source(Protocol):
    """One stream of audio. `start` returns at once; blocks then arrive in the inlet from another thread."""

    channel: int | None  # which to listen to, from 0; None: the mean of all
    live: bool  # real time: what is not taken in time is lost. Else it can be made to wait
    lead_in: bool  # counts as preceded by silence

    @property
    def rate(self) -> int:
        """Hz."""
        ...

    @property
    def channels(self) -> int:
        """In every block."""
        ...

    @property
    def block_s(self) -> float | None:
        """It delivers every so many seconds and wakes nobody; None: it wakes whoever waits for a block."""
        ...

    def start(self, inlet: Inlet, wake: Callable[[], None]) -> None: ...

    def stop(self) -> None: ...

    @property
    def failure(self) -> KwsdError | None:
        """Why it delivers no more, if it ought to."""
        ...


# --- microphone ---------------------------------------------------------------------------------------------


def portaudio() -> Any:
    """The sounddevice module. Raises AudioError if the PortAudio library is not installed."""
    try:
        import sounddevice
    except OSError:
        raise AudioError(
            "the PortAudio library is not installed; on Debian and Ubuntu: apt install libportaudio2, "
            "on Fedora: dnf install portaudio, on Arch: pacman -S portaudio",
            exit_code=UNAVAILABLE,
        ) from None
    return sounddevice


def input_devices() -> list[dict[str, Any]]:
    """What PortAudio says of every device that can record."""
    sounddevice = portaudio()
    return [dict(device) for device in sounddevice.query_devices() if device["max_input_channels"] > 0]


def find_device(wanted: str | int) -> dict[str, Any]:
    """An input device by number, by exact name, or by a pattern (`*USB*`) that fits just one; `default`.

    Raises AudioError if none fits, naming those that come near.
    """
    sounddevice = portaudio()
    devices = input_devices()
    if not devices:
        raise AudioError(
            "no microphone: PortAudio finds no device that can record; plug one in, or start the sound server",
        )
    if wanted == "default":
        number = sounddevice.default.device[0]
        found = [device for device in devices if device["index"] == number] or devices[:1]
    elif isinstance(wanted, int):
        found = [device for device in devices if device["index"] == wanted]
    else:
        found = [device for device in devices if device["name"] == wanted]
        found = found or [d for d in devices if fnmatch.fnmatch(d["name"].lower(), wanted.lower())]
    if len(found) == 1:
        return found[0]
    what = "several microphones fit" if found else "no such microphone"
    near = ", ".join(f"{device['index']} {device['name']!r}" for device in found or _near(str(wanted), devices))
    raise AudioError(f"{what}: {wanted!r}; choose one by number, name or pattern: {near}")


def _near(wanted: str, devices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Devices with a name like the wanted one, or all if none is."""
    like = difflib.get_close_matches(wanted.lower(), [d["name"].lower() for d in devices], 5, 0.5)
    near = [d for d in devices if wanted.strip("*?").lower() in d["name"].lower() or d["name"].lower() in like]
    return near or devices


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Nothing on stderr: PortAudio and ALSA print there, over several lines, what they return as an error as well."""
    stderr = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)


class Microphone:
    """A PortAudio input device at its own rate; kwsd resamples, never the device."""

    live = True
    lead_in = False

    def __init__(self, device: dict[str, Any], channel: int | None, block_ms: float) -> None:
        """`device` is as `find_device` gives it.

        Raises AudioError if it has no such channel or refuses every usual rate."""
        self._device = device
        self.channel = channel
        self.channels = self._channels_for(channel)
        self.rate = self._supported_rate()
        self._inlets: list[Inlet] = []
        self._block_ms = block_ms
        self._stream: sounddevice.RawInputStream | None = None
        self._stopping = False
        self._failure: AudioError | None = None

    @property
    def block_s(self) -> float | None:
        """Seconds in a block, a whole number of frames."""
        return self._frames / self.rate

    @property
    def _frames(self) -> int:
        return round(self.rate * self._block_ms / 1000)

    def _channels_for(self, channel: int | None) -> int:
        most = int(self._device["max_input_channels"])
        if channel is not None and channel >= most:
            raise AudioError(
                f"microphone {self._device['name']!r}: has {most} channels, no channel {channel + 1}; choose another"
            )
        # More channels than any microphone has are those of a sound server, which makes them up from one or two.
        return channel + 1 if channel is not None else most if most <= MOST_CHANNELS else 2

    def open_for(self, channel: int | None) -> None:
        """Before `start`: another stream listens to this channel. Raises AudioError if there is none."""
        channels = self._channels_for(channel)
        if channels > self.channels:
            self.channels = channels
            self.rate = self._supported_rate()

    def deliver_to(self, inlet: Inlet) -> None:
        """Every block from now on goes to this inlet, too."""
        self._inlets.append(inlet)

    def _supported_rate(self) -> int:
        sounddevice = portaudio()
        refusal = ""
        for rate in (round(self._device["default_samplerate"]), *USUAL_RATES):
            try:
                with _quietly():
                    sounddevice.check_input_settings(
                        device=self._device["index"], channels=self.channels, dtype="float32", samplerate=rate
                    )
                return int(rate)
            except sounddevice.PortAudioError as error:
                refusal = str(error)
        raise AudioError(
            f"microphone {self._device['name']!r}: cannot be opened ({refusal}); see kwsd devices for others",
            exit_code=UNAVAILABLE,
        )

    def start(self, inlet: Inlet, wake: Callable[[], None]) -> None:
        """Open the device. Raises AudioError if it refuses."""
        sounddevice = portaudio()
        self.deliver_to(inlet)
        inlets = self._inlets

        def callback(block: bytes, count: int, time: object, status: Any) -> None:
            """Waking the inference thread from here would double what it costs: it knows when a block is due."""
            for each in inlets:
                if status.input_overflow:
                    each.overflow()
                each.append(block)

        def finished() -> None:
            if not self._stopping:
                self._failure = AudioError(
                    f"microphone {self._device['name']!r}: stopped delivering; was it unplugged?", exit_code=IO
                )
                wake()

        try:
            with _quietly():
                self._stream = sounddevice.RawInputStream(
                    samplerate=self.rate,
                    blocksize=self._frames,
                    device=self._device["index"],
                    channels=self.channels,
                    dtype="float32",
                    callback=callback,
                    finished_callback=finished,
                )
                self._stream.start()
        except sounddevice.PortAudioError as error:
            raise AudioError(
                f"microphone {self._device['name']!r}: cannot be opened ({error}); is another program using it?",
                exit_code=UNAVAILABLE,
            ) from None

    def stop(self) -> None:
        """Close the device."""
        self._stopping = True
        if self._stream is not None:
            self._stream.close()

    @property
    def failure(self) -> KwsdError | None:
        """Set when the device stopped by itself."""
        return self._failure


class OtherChannel:
    """One more stream from a microphone that another stream opens: many a device can be opened but once."""

    live = True
    lead_in = False

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
        """Set when the device stopped by itself."""
        return self._microphone.failure


# --- recordings and pipes -----------------------------------------------------------------------------------


class _Reader:
    """Delivers blocks from a thread of its own, in real time or as fast as they are taken."""

    block_s: float | None = None

    def __init__(self, rate: int, channels: int, *, realtime: bool) -> None:
        self.rate, self.channels, self.live = rate, channels, realtime
        self._realtime = realtime
        self._stop = threading.Event()
        self._failure: KwsdError | None = None
        self._thread: threading.Thread | None = None

    def blocks(self) -> Iterator[Frames]:
        """The audio, block by block, until it ends. Raises KwsdError where it cannot go on."""
        raise NotImplementedError

    def start(self, inlet: Inlet, wake: Callable[[], None]) -> None:
        """Begin to deliver."""
        self._thread = threading.Thread(target=self._deliver, args=(inlet, wake), name="source", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Deliver no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=0.5)

    @property
    def failure(self) -> KwsdError | None:
        """Set when the audio broke off."""
        return self._failure

    def _deliver(self, inlet: Inlet, wake: Callable[[], None]) -> None:
        begun, delivered = time.monotonic(), 0
        try:
            for block in self.delivered():
                delivered += len(block)
                if self._realtime:
                    self._stop.wait(max(0.0, begun + delivered / self.rate - time.monotonic()))
                while not self._realtime and inlet.room < 1.0 and not self._stop.is_set():
                    time.sleep(0.005)
                if self._stop.is_set():
                    return
                inlet.write(block)
                wake()
        except Exception as error:  # a thread's top: nothing may die unheard
            self._failure = AudioError(f"reading audio failed: {error!r}", exit_code=IO)
        finally:
            inlet.end()
            wake()

    def delivered(self) -> Iterator[Frames]:
        """All blocks, then a second of silence, so that the last word crosses the whole window.

        Where the audio breaks off, `failure` says why, and what came before is still heard to its end.
        Where none came at all there is nothing to hear, and no silence is made up.
        """
        any_came = False
        try:
            for block in self.blocks():
                any_came = True
                yield block
        except KwsdError as error:
            self._failure = error
        size = round(BLOCK_S * self.rate)
        for _ in range(round(TAIL_S / BLOCK_S) if any_came else 0):
            yield np.zeros((size, self.channels), np.float32)


class AudioFile(_Reader):
    """A WAV, FLAC or Ogg file of any rate. Counts as preceded and followed by a second of silence."""

    lead_in = True

    def __init__(self, path: Path, channel: int | None, *, realtime: bool) -> None:
        """Raises AudioError if the file cannot be read, or lacks the channel."""
        from kwsd.recording import open_recording

        self._recording = open_recording(path)
        super().__init__(self._recording.samplerate, self._recording.channels, realtime=realtime)
        self._path = path
        self.channel = channel
        if channel is not None and channel >= self._recording.channels:
            raise AudioError(
                f"{path}: has {self._recording.channels} channels, no channel {channel + 1}; choose another, or mix"
            )

    def blocks(self) -> Iterator[Frames]:
        """The file's frames; AudioError after the last where the file is cut short."""
        from kwsd.recording import is_truncated, read_blocks

        read = 0
        with self._recording:
            truncated = is_truncated(self._recording)
            for block in read_blocks(self._recording, round(BLOCK_S * self.rate)):
                check_finite(block, str(self._path), read)
                read += len(block)
                yield block
        if truncated:
            raise AudioError(
                f"{self._path}: is cut short after {read / self.rate:.2f} s; all there is was listened to", exit_code=IO
            )


class RawPcm(_Reader):
    """Headerless interleaved samples from stdin (`-`), a FIFO or a file."""

    lead_in = False

    def __init__(self, path: str, rate: int, channels: int, sample_format: str, channel: int | None) -> None:
        """Raises AudioError if there is no such pipe, ConfigError if stdin is a terminal."""
        super().__init__(rate, channels, realtime=False)
        self.channel = channel
        self._name = "stdin" if path == "-" else path
        self._decoder = PcmDecoder(sample_format, channels)
        self._fd = self._open(path)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def _open(self, path: str) -> int:
        if path == "-":
            if sys.stdin is None or sys.stdin.closed:
                raise AudioError(f"stdin: is closed; {PIPE_HINT}")
            if os.isatty(0):
                raise ConfigError(f"stdin: is a terminal; {PIPE_HINT}")
            return 0
        try:
            # A FIFO without a writer would block until one comes; with O_NONBLOCK it opens, and poll waits.
            return os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            raise AudioError(f"{path}: no such file or FIFO; create it with mkfifo") from None
        except PermissionError:
            raise AudioError(f"{path}: permission denied", exit_code=NO_PERMISSION) from None
        except OSError as error:
            raise AudioError(f"{path}: cannot be opened ({error.strerror})") from None

    def blocks(self) -> Iterator[Frames]:
        """Frames until the writer closes; an incomplete last frame is dropped and said."""
        frame = self._decoder.frame  # bytes
        read = 0
        while not self._stop.is_set():
            chunk = self._read(round(READ_S * self.rate) * frame)
            if chunk is None:
                continue
            if not chunk:
                break
            block = self._decoder.frames(chunk)
            check_finite(block, self._name, read)
            read += len(block)
            if len(block):
                yield block
        if read == 0 and not self._stop.is_set():
            raise AudioError(f"{self._name}: ended before a single sample came; pipe audio into it")
        rest = len(self._decoder.rest)
        if rest:
            self._failure = AudioError(
                f"{self._name}: ended inside a sample ({rest} of {frame} bytes); the rest was listened to",
                exit_code=0,
            )

    def _read(self, size: int) -> bytes | None:
        """Bytes, b'' at the end, None if nothing came for a while."""
        if not self._poll.poll(100):
            return None
        try:
            return os.read(self._fd, size)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.EISDIR:
                raise AudioError(f"{self._name}: is a folder") from None
            raise AudioError(f"{self._name}: cannot be read ({error.strerror})", exit_code=IO) from None


def check_finite(block: Frames, name: str, before: int) -> None:
    """Raises AudioError at the first sample that is not a number."""
    if not np.isfinite(block).all():
        row = int(np.argwhere(~np.isfinite(block))[0][0])
        raise AudioError(
            f"{name}: sample {before + row} is not a number (NaN or infinite); repair the recording", exit_code=IO
        )
