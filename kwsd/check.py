"""`kwsd check`: whether a daemon could start with a configuration, as far as that is known without opening anything."""

from kwsd.artefact import read_artefact
from kwsd.config import Config, FileConfig, HttpConfig, ListenConfig, PcmConfig, WyomingConfig
from kwsd.daemon import http_token
from kwsd.door import check_group
from kwsd.errors import AudioError
from kwsd.listening import read_token
from kwsd.pipeline import make_rules
from kwsd.recording import open_recording
from kwsd.sinks.hooks import make_hooks
from kwsd.sinks.mqtt import read_broker


def check(config: Config) -> None:
    """Raises KwsdError for a model, recording, pipe, secret, group or program that is named and not there, or not as it
    should be."""
    rules = make_rules(config, read_artefact(config.model_path, config.model_sha256).info)
    make_hooks(config.hooks, rules.keywords, config.resolve)
    if config.sinks.mqtt.broker is not None:
        read_broker(config.sinks.mqtt, config.resolve)
    read_token(config)
    http_token(config)
    _check_groups(config)
    for stream in config.streams:
        if isinstance(stream, FileConfig):
            open_recording(config.resolve(stream.path)).close()
        elif isinstance(stream, PcmConfig) and stream.path != "-" and not config.resolve(stream.path).exists():
            raise AudioError(f"{config.resolve(stream.path)}: no such file or FIFO; create it with mkfifo")


def _check_groups(config: Config) -> None:
    services: dict[str, ListenConfig | HttpConfig | WyomingConfig] = {
        "listen.on": config.listen,
        "http.on": config.http,
        "wyoming.on": config.wyoming,
    }
    for setting, service in services.items():
        if service.on:
            check_group(service.group, setting)
    if config.sinks.socket.enabled:
        check_group(config.sinks.socket.group, "sinks.socket.path")
