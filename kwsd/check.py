"""`kwsd check`: whether a daemon could start with a configuration, as far as that is known without opening anything."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from msgspec.structs import replace

from kwsd.artefact import read_artefact
from kwsd.config import Config, FileConfig, HookConfig, HttpConfig, ListenConfig, PcmConfig, WyomingConfig
from kwsd.door import check_group
from kwsd.engines import check_engine
from kwsd.errors import NO_PERMISSION, AudioError
from kwsd.listening import read_token
from kwsd.outlets import check_libraries, http_secret
from kwsd.pipeline import make_rules
from kwsd.recording import check_channel, open_recording
from kwsd.secret import is_to_come
from kwsd.sinks.broker import read_broker
from kwsd.sinks.hooks import make_hooks


def check(config: Config) -> None:
    """Raises KwsdError for a model, recording, pipe, library, secret, group or program that is wanted and not there, or
    not as it should be. What only systemd will give the service is not looked for."""
    with config.blamed():
        artefact = read_artefact(config.model_path, config.model_sha256)
        rules = make_rules(config, artefact.info)
        check_engine(artefact, config.device, config.engine)
        make_hooks(hooks_to_check(config), rules.keywords, config.resolve)
        if config.sinks.mqtt.broker is not None and not broker_is_to_come(config):
            read_broker(config.sinks.mqtt, config.resolve)
        for look in looks(config):
            look()


def hooks_to_check(config: Config) -> tuple[HookConfig, ...]:
    """Those of a config, without secrets that only systemd will give."""
    return tuple(replace(hook, token_file=None) if is_to_come(hook.token_file) else hook for hook in config.hooks)


def broker_is_to_come(config: Config) -> bool:
    """Whether only systemd will give what the MQTT broker wants."""
    mqtt = config.sinks.mqtt
    return any(map(is_to_come, (mqtt.user_file, mqtt.password_file, mqtt.ca_file, mqtt.cert_file, mqtt.key_file)))


def looks(config: Config) -> Iterator[Callable[[], object]]:
    """At recordings, pipes, libraries, secrets and groups, one each; each raises KwsdError for what is not as it should
    be."""
    for stream in config.streams:
        if isinstance(stream, FileConfig):
            yield partial(_look_at_recording, config.resolve(stream.path), stream.channel)
        elif isinstance(stream, PcmConfig) and stream.path != "-":
            yield partial(_look_at_pipe, config.resolve(stream.path))
    yield partial(check_libraries, config)
    if not is_to_come(config.listen.token_file):
        yield partial(read_token, config)
    if not is_to_come(config.http.token_file):
        yield partial(http_secret, config)
    for setting, group in _groups(config).items():
        yield partial(check_group, group, setting)


def _look_at_recording(path: Path, channel: int | Literal["mix"]) -> None:
    with open_recording(path) as recording:
        check_channel(path, recording.channels, None if channel == "mix" else channel - 1)


def _look_at_pipe(path: Path) -> None:
    try:
        path.stat()
    except PermissionError:
        raise AudioError(f"{path}: permission denied; make its folder readable", exit_code=NO_PERMISSION) from None
    except OSError:
        raise AudioError(f"{path}: no such file or FIFO; create it with mkfifo") from None


def _groups(config: Config) -> dict[str, str | None]:
    """By the setting that is for them."""
    services: dict[str, ListenConfig | HttpConfig | WyomingConfig] = {
        "listen.on": config.listen,
        "http.on": config.http,
        "wyoming.on": config.wyoming,
    }
    groups = {setting: service.group for setting, service in services.items() if service.on}
    return groups | ({"sinks.socket.path": config.sinks.socket.group} if config.sinks.socket.enabled else {})
