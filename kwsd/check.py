"""`kwsd check`: whether a daemon could start with a configuration, as far as that is known without opening anything."""

from msgspec.structs import replace

from kwsd.artefact import read_artefact
from kwsd.config import Config, FileConfig, HttpConfig, ListenConfig, PcmConfig, WyomingConfig
from kwsd.door import check_group
from kwsd.errors import AudioError
from kwsd.listening import read_token
from kwsd.outlets import http_secret
from kwsd.pipeline import make_rules
from kwsd.recording import open_recording
from kwsd.secret import is_to_come
from kwsd.sinks.hooks import make_hooks
from kwsd.sinks.mqtt import read_broker


def check(config: Config) -> None:
    """Raises KwsdError for a model, recording, pipe, secret, group or program that is named and not there, or not as it
    should be. What only systemd will give the service is not looked for."""
    rules = make_rules(config, read_artefact(config.model_path, config.model_sha256).info)
    hooks = tuple(replace(h, token_file=None) if is_to_come(h.token_file) else h for h in config.hooks)
    make_hooks(hooks, rules.keywords, config.resolve)
    _check_secrets(config)
    _check_groups(config)
    for stream in config.streams:
        if isinstance(stream, FileConfig):
            open_recording(config.resolve(stream.path)).close()
        elif isinstance(stream, PcmConfig) and stream.path != "-" and not config.resolve(stream.path).exists():
            raise AudioError(f"{config.resolve(stream.path)}: no such file or FIFO; create it with mkfifo")


def _check_secrets(config: Config) -> None:
    mqtt = config.sinks.mqtt
    files = (mqtt.user_file, mqtt.password_file, mqtt.ca_file, mqtt.cert_file, mqtt.key_file)
    if mqtt.broker is not None and not any(map(is_to_come, files)):
        read_broker(mqtt, config.resolve)
    if not is_to_come(config.listen.token_file):
        read_token(config)
    if not is_to_come(config.http.token_file):
        http_secret(config)


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
