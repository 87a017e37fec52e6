"""PortAudio, the library that records: its devices, how to have it look at them anew, and how to have it twice.

To see a device that was plugged in later, PortAudio must be shut down and started again, and that ends every stream it
has open. So every microphone has an instance of its own: the first one the library itself, each of the others a copy of
it in memory, with its own list of devices and its own streams.
"""

import contextlib
import difflib
import fnmatch
import functools
import importlib.util
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kwsd.ears import Ears
from kwsd.errors import UNAVAILABLE, AudioError

USUAL_RATES = (48_000, 44_100, 16_000, 32_000, 96_000, 8_000)  # Hz, tried when a device refuses its own default
CARD = re.compile(r" \(hw:\d+,\d+\)$")  # ALSA's number of a card, which changes when it is plugged in again
COUNT_S = 3.0  # how long one thread waits for another that starts the library
COPY_NAME = "libportaudio"

Device = dict[str, Any]  # what PortAudio says of a device


class PortAudio:
    """One instance of the library."""

    def __init__(self, module: Any, *, counted: bool = False) -> None:
        """`module` is a sounddevice of its own; that of the library itself is `counted`."""
        self._module, self._counted = module, counted
        self._ears: Ears | None = None  # held for C, until the next stream is opened and this one surely closed

    def devices(self) -> list[Device]:
        """Every device that can record, as it was when the library last looked."""
        return [dict(device) for device in self._module.query_devices() if device["max_input_channels"] > 0]

    def look_again(self) -> None:
        """Make a new list of devices. No stream of this instance may be open. Raises AudioError."""
        with _counting(self._counted):
            try:
                with quietly():
                    if self._module._initialized:
                        self._module._terminate()
                    self._module._initialize()
            except self._module.PortAudioError as error:
                raise AudioError(f"PortAudio does not start ({error})", exit_code=UNAVAILABLE) from None

    def find(self, wanted: str | int) -> Device:
        """An input device by number, by exact name, or by a pattern (`*USB*`) that fits just one; `default`.

        Raises AudioError if none fits, naming those that come near.
        """
        devices = self.devices()
        if not devices:
            raise AudioError(
                "no microphone: PortAudio finds no device that can record; plug one in, or start the sound server; is "
                "another program using it?",
            )
        if wanted == "default":
            number = self._module.default.device[0]
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

    def find_again(self, wanted: str | int, name: str) -> Device:
        """The device that was once called `name` and is to be found by `wanted`, after the list was made anew.

        Numbers change, and so does that of the card at the end of a name. While a sound server is away, the library
        takes a card for the default device: that is another microphone, and would be kept from the server. Raises
        AudioError if it is not there.
        """
        if isinstance(wanted, str) and wanted != name:  # a pattern, or `default`
            now = self.find(wanted)
            if wanted == "default" and CARD.search(now["name"]) and not CARD.search(name):
                raise AudioError(f"microphone {name!r} is not there: its sound server is away")
            return now
        devices = self.devices()
        found = [d for d in devices if d["name"] == name]
        found = found or [d for d in devices if CARD.sub("", d["name"]) == CARD.sub("", name)]
        if len(found) != 1:
            raise AudioError(f"microphone {name!r} is {'there more than once' if found else 'not there'}")
        return found[0]

    def supported_rate(self, device: Device, channels: int) -> int:
        """The device's own rate in Hz, or a usual one if it refuses that. Raises AudioError if it refuses all."""
        refusal = ""
        for rate in (round(device["default_samplerate"]), *USUAL_RATES):
            try:
                with quietly():
                    self._module.check_input_settings(
                        device=device["index"], channels=channels, dtype="float32", samplerate=rate
                    )
                return int(rate)
            except self._module.PortAudioError as error:
                refusal = str(error)
        raise AudioError(
            f"microphone {device['name']!r}: cannot be opened ({refusal}); is another program using it? "
            "Else see kwsd devices for others",
            exit_code=UNAVAILABLE,
        )

    def _make_stream(self, ears: Ears, **options: Any) -> Any:
        """One that calls C, or Python."""
        if ears.address is None:
            return self._module.RawInputStream(callback=ears.hear, **options)
        ffi = self._module._ffi
        callback, given = ffi.cast("void *", ears.address), ffi.cast("void *", ears.given)
        return self._module._StreamBase("input", callback=callback, userdata=given, **options)

    def open(
        self,
        device: Device,
        geometry: tuple[int, int, int],
        ears: Ears,
        finished: Callable[[], None],
    ) -> Any:
        """A running stream of float32 blocks. `geometry` is the rate in Hz, channels, and frames in a block.

        Raises AudioError if the device refuses."""
        rate, channels, frames = geometry
        self._ears = ears
        try:
            with quietly():
                stream = self._make_stream(
                    ears,
                    samplerate=rate,
                    blocksize=frames,
                    device=device["index"],
                    channels=channels,
                    dtype="float32",
                    finished_callback=finished,
                )
                stream.start()
        except self._module.PortAudioError as error:
            ears.close()  # it may have been opened all the same
            raise AudioError(
                f"microphone {device['name']!r}: cannot be opened ({error}); is another program using it?",
                exit_code=UNAVAILABLE,
            ) from None
        return stream


_free: list[PortAudio] = []  # instances whose microphone was closed
_lock = threading.Lock()
_count = threading.Lock()


@functools.cache
def portaudio() -> PortAudio:
    """The library itself. Raises AudioError if it is not installed."""
    try:
        with quietly():
            import sounddevice
    except Exception as error:  # PortAudio's own exceptions have no other base in common
        if not isinstance(error, OSError):
            raise AudioError(f"PortAudio does not start ({error})", exit_code=UNAVAILABLE) from None
        raise AudioError(
            "the PortAudio library is not installed; on Debian and Ubuntu: apt install libportaudio2, "
            "on Fedora: dnf install portaudio, on Arch: pacman -S portaudio",
            exit_code=UNAVAILABLE,
        ) from None
    first = PortAudio(sounddevice, counted=True)
    _free.append(first)
    return first


def borrow() -> PortAudio:
    """An instance for one microphone, with a list of devices that is fresh. Raises AudioError if none can be had."""
    with _lock:
        used_before = portaudio.cache_info().currsize > 0
        portaudio()
        audio = _free.pop(0) if _free else None
    if audio is None:
        return _copy()
    if used_before:
        try:
            audio.look_again()
        except AudioError:
            give_back(audio)
            raise
    return audio


def give_back(audio: PortAudio) -> None:
    """The microphone is closed: another one may have its instance."""
    with _lock:
        _free.append(audio)


def _copy() -> PortAudio:
    """One more instance: the same library from another file, one that lies in memory and stays open, as a name that
    was loaded before would give the same instance again."""
    copy = -1
    try:
        with quietly():
            module = _another_module()
            copy = os.memfd_create(COPY_NAME, os.MFD_CLOEXEC)
            with os.fdopen(copy, "wb", closefd=False) as file:
                file.write(_where_it_lies().read_bytes())
            module._lib = module._ffi.dlopen(f"/proc/self/fd/{copy}")
            module._initialize()
    except Exception as error:  # PortAudio's own exceptions have no other base in common
        if copy >= 0:
            os.close(copy)
        raise AudioError(
            f"PortAudio cannot be loaded a second time, for another microphone ({error}); name one microphone only, or "
            "run a second kwsd",
            exit_code=UNAVAILABLE,
        ) from None
    return PortAudio(module)


def _another_module() -> Any:
    """A sounddevice of its own, which is not in use of any library."""
    spec = importlib.util.find_spec("sounddevice")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _counting(True):
        spec.loader.exec_module(module)
        module._terminate()  # of the library itself
    return module


@contextlib.contextmanager
def _counting(counted: bool) -> Iterator[None]:
    """The library itself counts how often it was started, and does not expect two threads to do so at once.

    Raises AudioError if another thread is at it for long: a sound server that hangs."""
    if not counted:
        yield
        return
    if not _count.acquire(timeout=COUNT_S):
        raise AudioError("PortAudio is busy with a device that hangs", exit_code=UNAVAILABLE)
    try:
        yield
    finally:
        _count.release()


def _where_it_lies() -> Path:
    loaded = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return next(Path(line.split()[-1]) for line in loaded if "libportaudio" in line and ".so" in line)


def _near(wanted: str, devices: list[Device]) -> list[Device]:
    """Devices with a name like the wanted one, or all if none is."""
    like = difflib.get_close_matches(wanted.lower(), [d["name"].lower() for d in devices], 5, 0.5)
    near = [d for d in devices if wanted.strip("*?").lower() in d["name"].lower() or d["name"].lower() in like]
    return near or devices


class _Hush:
    """Nothing on file descriptor 2: PortAudio and ALSA print there, over several lines, what they return as an error as
    well. Counted, as several threads may want it at once. kwsd itself writes to a duplicate (`terminal.py`)."""

    def __init__(self) -> None:
        self._lock, self._users, self._stderr = threading.Lock(), 0, -1

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._stderr = os.dup(2)
                null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
                os.dup2(null, 2)
                os.close(null)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                os.dup2(self._stderr, 2)
                os.close(self._stderr)


_hush = _Hush()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """What C libraries write to stderr is kept out meanwhile."""
    with _hush:
        yield
