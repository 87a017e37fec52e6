"""`kwsd doctor`: is all there that hearing needs? Looks, records a little, and names the remedy of what is wrong."""

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from kwsd import client, compiled_debouncer, compiled_window, ears, powers
from kwsd.artefact import read_artefact
from kwsd.aside import in_time
from kwsd.audio_format import WINDOW
from kwsd.cascade import stages
from kwsd.check import broker_is_to_come, hooks_to_check, looks
from kwsd.compiled import library
from kwsd.config import Config, MicrophoneConfig
from kwsd.door import answers, events_path
from kwsd.engines import make_spotter
from kwsd.errors import NO_INPUT, AudioError, KwsdError
from kwsd.health import CLIPPED, CLIPPING, CONSTANT, MEANING, NONSENSE, QUIET, SILENCE, STUCK, fault_in
from kwsd.inlet import Inlet
from kwsd.microphone import Microphone
from kwsd.paths import FOLDER, SOCKET, kind_of
from kwsd.pipeline import make_rules
from kwsd.portaudio import Device, portaudio
from kwsd.ring import RingBuffer, Samples
from kwsd.sinks.broker import greet, read_broker
from kwsd.sinks.hooks import make_hooks
from kwsd.span import frame_levels_dbfs, level_dbfs

OK, WARN, FAIL = "ok", "warn", "FAIL"
FIRST_S = 5.0  # a device may take so long before it delivers
WINDOWS = 20  # scored, to see how long one takes
BUSY = 0.5  # of a core: more leaves no room for anything else
LEAST_SNR_DB = 10.0  # of the loudest to the quietest frames, where somebody spoke
ANSWER_S = 3.0  # a server of webhooks has so long to be reached
OFFSET = 0.02  # of full scale, from which a constant part of the signal is worth a word
NOISY_DBFS = -35.0
UNIT_PROPERTIES = ("LoadState", "ActiveState", "SubState", "UnitFileState", "StatusText", "NRestarts")
SOUND = Path("/dev/snd")

REMEDIES = {
    NONSENSE: "name another device; unplug this one and put it in again",
    SILENCE: "unmute it (alsamixer, pavucontrol), or name another device",
    CONSTANT: "name another device; unplug this one and put it in again",
    STUCK: "unplug it and put it in again, or restart the sound server",
    CLIPPING: "turn its gain down (alsamixer, pavucontrol)",
    QUIET: "unmute it, or turn its gain up (alsamixer, pavucontrol)",
}


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    state: str  # ok, warn, or FAIL
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.state:4s}  {self.what}" + (f"\n      → {self.remedy}" if self.remedy else "")

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


Findings = Iterator[Finding]


def examine(load: Callable[[], Config], seconds: float) -> Findings:
    """Everything, one after another; `load` reads the configuration, and each microphone in it is recorded for so many
    seconds. Raises nothing for what is wrong: that is what it looks for."""
    try:
        config = load()
        yield Finding(OK, f"configuration: streams {', '.join(stream.name for stream in config.streams) or 'none'}")
    except KwsdError as error:
        yield Finding(FAIL, f"configuration: {error}", "kwsd check says the same until it is right")
        return
    yield from _model(config)
    yield compiled_parts()
    yield from _named(config)
    yield from _microphones(config, seconds)
    yield from _socket(config)
    yield from _clips(config)
    yield from _broker(config)
    yield from _hooks(config)
    yield from _service()


# --- the model ---


def _model(config: Config) -> Findings:
    try:
        with config.blamed():
            artefact = read_artefact(config.model_path, config.model_sha256)
            rules = make_rules(config, artefact.info)
            spotter = make_spotter(artefact, config.device, config.engine)
    except KwsdError as error:
        yield Finding(FAIL, f"model: {error}")
        return
    window, begun = np.zeros((1, WINDOW), np.float32), time.perf_counter()
    for _ in range(WINDOWS):
        for network in stages(spotter):  # silence alone would ask no second one
            network.score(window)
    each_s = (time.perf_counter() - begun) / WINDOWS
    share = each_s / (config.window.hop_ms / 1000)
    what = (
        f"model: {config.model_path.name} ({spotter.info.architecture}, {spotter.engine}) "
        f"knows {', '.join(rules.keywords)}; "
        f"a whole window takes {each_s * 1000:.1f} ms, a share of {share:.1%} of a core at a hop of "
        f"{config.window.hop_ms:g} ms"
    )
    slow = share > BUSY
    yield Finding(
        FAIL if share > 1.0 and artefact.info.step is None else WARN if slow else OK,
        what,
        "take commands-fast, an ONNX file instead of TorchScript, or a longer window.hop_ms" if slow else "",
    )


def compiled_parts() -> Finding:
    """What of kwsd is compiled, besides the engine."""
    parts = {
        "audio callback": ears.PART,
        "loudness": powers.PART,
        "windows": compiled_window.PART,
        "debouncer": compiled_debouncer.PART,
    }
    missing = [name for name, part in parts.items() if library(*part) is None]
    if not missing:
        return Finding(OK, f"compiled: {', '.join(parts)}")
    return Finding(
        WARN,
        f"compiled: not {', '.join(missing)}: Python does it, at a greater cost, and waits for other threads",
        "install a C compiler, then kwsd again",
    )


def _named(config: Config) -> Findings:
    """Recordings, pipes, libraries, secrets and groups."""
    for look in looks(config):
        try:
            with config.blamed():
                look()
        except KwsdError as error:
            yield Finding(FAIL, str(error))


# --- the sound system ---


def _microphones(config: Config, seconds: float) -> Findings:
    microphones = {stream.device: stream for stream in config.streams if isinstance(stream, MicrophoneConfig)}
    if not microphones:
        yield Finding(OK, "sound: no stream of the configuration is a microphone")
        return
    yield from _sound_system()
    devices = list(_devices())
    yield from devices
    if all(device.state == OK for device in devices):
        for stream in microphones.values():
            yield from _microphone(stream, config, seconds)


def _sound_system() -> Findings:
    yield from _sound_cards()
    server = _sound_server()
    if server is not None:
        yield Finding(OK, f"sound server: {server}")
    elif os.geteuid() == 0 or "XDG_RUNTIME_DIR" not in os.environ:
        yield Finding(
            OK, "sound server: none for this user; cards are opened through ALSA",
            "where somebody is logged in at a desktop, its sound server has the microphone: run kwsd as that user"
            if os.geteuid() == 0 else "",
        )  # fmt: skip
    else:
        yield Finding(OK, "sound server: none in this session; cards are opened through ALSA")


def _sound_cards() -> Findings:
    cards = sorted(SOUND.glob("pcmC*c")) if SOUND.is_dir() else []
    closed = [card for card in cards if not os.access(card, os.R_OK | os.W_OK)]
    if closed:
        yield Finding(
            WARN, f"sound cards: no permission for {', '.join(card.name for card in closed)}",
            "sudo usermod -aG audio $USER, then log in anew (a sound server lets you record without)",
        )  # fmt: skip
    elif cards:
        yield Finding(OK, f"sound cards: {len(cards)} that record")
    else:
        yield Finding(WARN, "sound cards: none that records", "plug in a microphone; a sound server may have one yet")


def _sound_server() -> str | None:
    """Which answers, and where."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "/nowhere")
    named = os.environ.get("PULSE_SERVER", "").removeprefix("unix:")
    for name, path in (
        ("PulseAudio or PipeWire", named),
        ("PipeWire", f"{runtime}/pipewire-0"),
        ("PulseAudio or PipeWire", f"{runtime}/pulse/native"),
    ):
        if path and kind_of(Path(path)) == SOCKET and answers(Path(path)):
            return f"{name} at {path}"
    return None


def _devices() -> Findings:

    def look() -> tuple[list[Device], int]:
        audio = portaudio()
        return audio.devices(), audio.find("default")["index"]

    try:
        devices, default = in_time(look)
    except KwsdError as error:
        yield _not_opened("devices", error) if error.exit_code == NO_INPUT else Finding(FAIL, f"devices: {error}")
        return
    for device in devices:
        mark = ", the default" if device["index"] == default else ""
        rate, channels = device["default_samplerate"], device["max_input_channels"]
        yield Finding(OK, f"device {device['index']}: {device['name']}, {rate:.0f} Hz, {channels} channels{mark}")


def _not_opened(what: str, error: KwsdError, remedy: str = "") -> Finding:
    """No fault where a kwsd runs: most cards can be opened but once, and are not even found while they are."""
    with contextlib.suppress(KwsdError):
        path = client.usual_socket()
        if isinstance(error, AudioError) and answers(path):
            held = f"the kwsd that runs ({path}) may hold it; stop it to examine it"
            return Finding(WARN, f"{what}: {error}", f"{held}; else {remedy}" if remedy else held)
    return Finding(FAIL, f"{what}: {error}", remedy)


# --- a microphone ---


def _microphone(stream: MicrophoneConfig, config: Config, seconds: float) -> Findings:
    name = f"microphone {stream.name} ({stream.device})"
    try:
        recorded, rate = record(stream, seconds)
    except KwsdError as error:
        yield _not_opened(name, error, "kwsd devices lists what there is; name one in streams")
        return
    if recorded is None:
        yield Finding(
            FAIL, f"{name}: opens and delivers nothing", "restart the sound server, or unplug it and put it in again"
        )
        return
    yield from judge(name, recorded, rate, config.capture.floor_dbfs)


def record(stream: MicrophoneConfig, seconds: float) -> tuple[Samples | None, int]:
    """The last seconds (n,) of a microphone as it delivers them, and its rate in Hz; None if it delivers nothing.

    Raises AudioError if it cannot be opened, KwsdError if the sound system hangs.
    """

    def listen() -> tuple[Microphone, Inlet]:
        microphone = Microphone(stream.device, None if stream.channel == "mix" else stream.channel - 1, stream.block_ms)
        inlet = Inlet(RingBuffer(1, 2 * WINDOW), 0, microphone.rate, microphone.channels, microphone.channel)
        microphone.start(inlet, lambda: None)
        return microphone, inlet

    microphone, inlet = in_time(listen)
    try:
        deadline = time.monotonic() + FIRST_S + seconds
        while (recorded := inlet.last(seconds)) is None and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        microphone.stop()
    return recorded, microphone.rate


def judge(name: str, samples: Samples, rate: int, floor_dbfs: float) -> Findings:
    """What a recording (n,) at some rate tells of the microphone it was made with."""
    fault = fault_in(samples, floor_dbfs)
    offset = float(samples.mean())
    sound = samples - np.float32(offset)
    levels = frame_levels_dbfs(sound)
    loud, quiet = (float(np.percentile(levels, share)) for share in (95, 10))
    clipped = float(np.mean(np.abs(samples) >= CLIPPED))
    figures = (
        f"{rate} Hz, level {level_dbfs(sound):.1f} dBFS, noise floor {quiet:.1f} dBFS, loudest {loud - quiet:.0f} dB "
        f"over it, constant part {offset:+.4f}, clipped {clipped:.2%}"
    )
    if fault is not None:
        yield Finding(FAIL, f"{name}: {fault}: {MEANING[fault]}; {figures}", REMEDIES[fault])
    elif quiet > NOISY_DBFS:
        yield Finding(WARN, f"{name}: very noisy; {figures}", "turn its gain down, or move it away from what hums")
    elif abs(offset) > OFFSET:
        yield Finding(
            WARN, f"{name}: far from zero; {figures}", "kwsd hears all the same; the sound card may be broken"
        )
    else:
        spoken = (
            "somebody spoke" if loud - quiet >= LEAST_SNR_DB else "nobody spoke, so how loud a voice is one cannot tell"
        )
        yield Finding(OK, f"{name}: hears; {figures}; {spoken}")


# --- where events go ---


def _socket(config: Config) -> Findings:
    if not config.sinks.socket.enabled:
        return
    where = config.sinks.socket.path
    try:
        path = events_path() if where == "auto" else config.resolve(where)
    except KwsdError as error:
        if where != "auto":
            yield Finding(FAIL, f"events socket: {error}", "name a path in sinks.socket.path")
            return
        path = client.SYSTEM_SOCKET  # whoever has no place of his own may look for the service
        if not os.path.exists(path):  # noqa: PTH110 - as below
            yield Finding(
                WARN,
                f"events socket: auto finds no place for this user, and {path}, where systemd puts it, is not there",
                "to run kwsd without systemd, name a path in sinks.socket.path",
            )
            return
    if not os.path.exists(path):  # noqa: PTH110 - a closed folder is no error
        yield Finding(OK, f"events socket: {path} is not there: no kwsd of this user runs")
    elif not os.access(path, os.R_OK | os.W_OK):
        yield Finding(WARN, f"events socket: {path}: no permission", "sudo usermod -aG kwsd $USER, then log in anew")
    elif answers(path):
        yield Finding(OK, f"events socket: a kwsd answers at {path}")
    else:
        yield Finding(OK, f"events socket: {path} is left over; the next kwsd removes it")


def _clips(config: Config) -> Findings:
    if config.sinks.clips.folder is None:
        return
    try:
        folder = config.resolve(config.sinks.clips.folder)
    except KwsdError as error:
        yield Finding(FAIL, f"clips: {error}", "name a folder in sinks.clips.folder")
        return
    there = next(path for path in (folder, *folder.absolute().parents) if kind_of(path) is not None)
    if kind_of(there) == FOLDER and os.access(there, os.W_OK | os.X_OK):
        yield Finding(OK, f"clips: what is heard is kept in {folder}")
    else:
        yield Finding(
            WARN, f"clips: {folder}: this user cannot write there",
            "if it is this user that kwsd runs as, name another folder in sinks.clips.folder",
        )  # fmt: skip


def _broker(config: Config) -> Findings:
    mqtt = config.sinks.mqtt
    if mqtt.broker is None:
        return
    if broker_is_to_come(config):
        yield Finding(
            OK, "MQTT broker: not asked, as only systemd has what it wants; kwsd ctl status says if it is lost"
        )
        return
    try:
        with config.blamed():
            broker = read_broker(mqtt, config.resolve)
    except KwsdError as error:
        yield Finding(FAIL, f"MQTT broker: {error}")
        return
    try:
        heard = asyncio.run(greet(broker, mqtt.site))
    except KwsdError as error:
        yield Finding(FAIL, f"MQTT broker: {error}", "start it, or correct sinks.mqtt: broker, its files and ca_file")
        return
    if heard:
        yield Finding(OK, f"MQTT broker: {broker.name} takes what kwsd tells")
    else:
        yield Finding(
            WARN, f"MQTT broker: {broker.name} lets kwsd in, and what it tells does not come back",
            f"let its user read and write kwsd/{mqtt.site}/# in the broker's access list",
        )  # fmt: skip


def _hooks(config: Config) -> Findings:
    """No program is run and nothing is posted: both would do something."""
    if not config.hooks:
        return
    try:
        keywords = make_rules(config, read_artefact(config.model_path, config.model_sha256).info).keywords
    except KwsdError:  # told above
        return
    try:
        with config.blamed():
            hooks = make_hooks(hooks_to_check(config), keywords, config.resolve)
    except KwsdError as error:
        yield Finding(FAIL, f"hook: {error}")
        return
    for hook in hooks:
        if hook.config.post is None:
            yield Finding(OK, f"hook {hook.name}: {hook.command[0]} is there")  # its arguments may be secret
            continue
        host, port = _server(hook.config.post)
        try:
            socket.create_connection((host, port), ANSWER_S).close()
        except OSError as error:
            yield Finding(
                FAIL, f"hook {hook.name}: {host}:{port} cannot be reached ({error})", "start it, or correct the URL"
            )
        else:
            yield Finding(OK, f"hook {hook.name}: {host}:{port} answers")


def _server(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80)


# --- the service ---


def _service() -> Findings:
    if shutil.which("systemctl") is None or not Path("/run/systemd/system").is_dir():
        yield Finding(OK, "systemd: does not run here")
        return
    for kind, options in (("system unit", ()), ("user unit", ("--user",))):
        try:
            shown = subprocess.run(  # noqa: S603 - nothing in it is anybody's input
                ["systemctl", *options, "show", "kwsd", f"--property={','.join(UNIT_PROPERTIES)}"],  # noqa: S607 - as found
                capture_output=True, text=True, check=False, timeout=10,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            yield Finding(WARN, f"{kind}: systemctl does not answer ({error})")
            continue
        state = dict(line.split("=", 1) for line in shown.stdout.splitlines() if "=" in line)
        if state.get("LoadState") != "loaded":
            yield Finding(OK, f"{kind}: not installed")
            continue
        active, sub, status = (state.get(name, "") for name in ("ActiveState", "SubState", "StatusText"))
        what = f"{kind}: {active} ({sub}), {state.get('UnitFileState')}, restarted {state.get('NRestarts')} times; "
        what += status
        if active == "failed" or sub.startswith("auto-restart") or "NOT HEARING" in status:
            follow = "journalctl --user -u kwsd" if options else "journalctl -u kwsd"
            yield Finding(FAIL if active == "failed" else WARN, what, f"{follow} says why")
        else:
            yield Finding(OK, what)
