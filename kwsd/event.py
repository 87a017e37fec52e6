"""What the daemon says: one compact JSON object per line, additive changes only."""

import secrets
import time
from datetime import UTC, datetime
from typing import get_args

import msgspec

VERSION = 1
GONE = ("lost", "ended")  # ailments of streams from which nothing comes
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class RunnerUp(msgspec.Struct, frozen=True):
    """The label that came second."""

    keyword: str
    score: float


class AlsoHeard(msgspec.Struct, frozen=True):
    """What another stream heard of the same word."""

    stream: str
    keyword: str
    score: float
    level_dbfs: float


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """What every event carries besides its own fields; `stamp` fills it in."""


class Heard(_Event, frozen=True, kw_only=True, tag="detection"):
    """A keyword was said."""

    stream: str
    keyword: str
    score: float  # smoothed posterior, 0 to 1
    threshold: float
    runner_up: RunnerUp
    start_s: float  # the word's first sample, on the stream's own time axis
    end_s: float
    latency_ms: int | None = None  # arrival of the deciding window's last sample → event; if it comes in real time
    level_dbfs: float  # of the word
    model: str
    also_heard: tuple[AlsoHeard, ...] = ()  # of streams that hear one another's words: the others, the loudest first


class Rejected(_Event, frozen=True, kw_only=True, tag="rejected"):
    """A keyword scored well and was not told: for those who choose thresholds."""

    stream: str
    keyword: str
    score: float  # the best it reached
    threshold: float
    reason: str  # the setting that was in the way: threshold, margin, min_hits, isolation, refractory, or arbitration
    at_s: float  # end of the window that scored best, or for arbitration of the word, on the stream's own time axis


class Ready(_Event, frozen=True, kw_only=True, tag="ready"):
    """Audio reached the model, or satellites may come; from now on words are heard."""

    model: str
    keywords: tuple[str, ...]
    streams: tuple[str, ...]


class Overrun(_Event, frozen=True, kw_only=True, tag="overrun"):
    """Audio came faster than it was dealt with; some was not listened to."""

    stream: str
    skipped_windows: int = 0  # inference was late
    lost_samples: int = 0  # at 16 kHz; overwritten before they were read
    device_overflows: int = 0  # the sound system dropped audio, nobody knows how much


class Overload(_Event, frozen=True, kw_only=True, tag="overload"):
    """More audio comes than can be scored, or no longer: windows are scored this often from now on."""

    hop_ms: float
    lag_ms: int | None  # of the last second's windows, the 99th percentile


class AudioLost(_Event, frozen=True, kw_only=True, tag="audio_lost"):
    """A stream delivers no more audio though it should. A microphone is opened again until it does."""

    stream: str
    reason: str


class AudioRestored(_Event, frozen=True, kw_only=True, tag="audio_restored"):
    """A stream delivers again."""

    stream: str
    gap_s: float  # in which nothing was heard; the stream's time axis has it, too


class AudioFault(_Event, frozen=True, kw_only=True, tag="audio_fault"):
    """A microphone delivers, but nothing that can be understood."""

    stream: str
    fault: str  # digital silence, constant, stuck, clipping, or quiet
    meaning: str
    lasted_s: float  # so far
    level_dbfs: float  # of the last second, without its mean


class AudioHealed(_Event, frozen=True, kw_only=True, tag="audio_healed"):
    """A fault is over."""

    stream: str
    fault: str
    lasted_s: float


class StreamJoined(_Event, frozen=True, kw_only=True, tag="stream_joined"):
    """A satellite connected."""

    stream: str
    rate: int  # Hz
    channels: int


class StreamLeft(_Event, frozen=True, kw_only=True, tag="stream_left"):
    """A satellite is gone, or a recording or pipe has ended while others go on, and all of it has been heard."""

    stream: str
    reason: str
    heard_s: float  # audio that came


class Muted(_Event, frozen=True, kw_only=True, tag="mute"):
    """From now on nothing that is said on a stream is told, or it is again."""

    stream: str
    muted: bool


class ThresholdSet(_Event, frozen=True, kw_only=True, tag="threshold"):
    """A keyword counts from another score on."""

    keyword: str
    threshold: float


class HookFailed(_Event, frozen=True, kw_only=True, tag="hook_failed"):
    """A command or webhook that an event was to start did not do what it should."""

    hook: str  # its name, or its place in the config
    reason: str
    of: str  # the id of that event
    stream: str | None = None
    keyword: str | None = None


class BrokerLost(_Event, frozen=True, kw_only=True, tag="broker_lost"):
    """The MQTT broker does not answer; events wait for it."""

    broker: str
    reason: str


class BrokerRestored(_Event, frozen=True, kw_only=True, tag="broker_restored"):
    """It does again."""

    broker: str
    gap_s: float
    dropped: int  # events it will never get


class StreamState(msgspec.Struct, frozen=True, kw_only=True):
    """How a stream is."""

    stream: str
    heard_s: float  # audio so far
    lag_ms: int  # since the last of it came
    level_dbfs: float | None  # of the last second; null: digital silence, or too little came
    floor_dbfs: float | None = None  # of the quietest tenth of it
    ailment: str | None = None  # lost, ended, or the fault that was told; null: none
    muted: bool = False
    passing: bool = False  # a client of one of our services, not a place where somebody may be


class Heartbeat(_Event, frozen=True, kw_only=True, tag="heartbeat"):
    """All is well, or how it is."""

    uptime_s: float
    detections: int
    windows: int  # scored since the last heartbeat
    lag_p99_ms: int | None  # from the arrival of their last samples to their scores; null: none could be late
    streams: tuple[StreamState, ...]


class Reload(_Event, frozen=True, kw_only=True, tag="reload"):
    """The configuration was read again."""

    ok: bool
    error: str | None = None  # why the old one was kept


class Shutdown(_Event, frozen=True, kw_only=True, tag="shutdown"):
    """The last event of a run."""

    reason: str
    detections: int


class Hello(_Event, frozen=True, kw_only=True, tag="hello"):
    """The first line a reader of the socket gets."""

    kwsd: str  # version
    schema: int  # of the events
    model: str
    keywords: tuple[str, ...]
    streams: tuple[str, ...]
    ailments: dict[str, str] = {}  # of streams that do not hear: lost, or the fault
    muted: tuple[str, ...] = ()  # streams


class Dropped(_Event, frozen=True, kw_only=True, tag="dropped"):
    """This reader was too slow: its oldest events are gone."""

    count: int


class Refused(_Event, frozen=True, kw_only=True, tag="refused"):
    """To a satellite that cannot be heard, or a reader whose wish is not understood."""

    reason: str


class Scores(_Event, frozen=True, kw_only=True, tag="scores"):
    """What the model says of the last window of a stream; to readers only who subscribed to it."""

    stream: str
    at_s: float  # end of the window, on the stream's own time axis
    level_dbfs: float  # of its last hop
    lag_ms: int  # from the arrival of its last sample
    posteriors: dict[str, float]  # per label
    scores: dict[str, float]  # per keyword: the mean posterior that the debouncer judges
    thresholds: dict[str, float]  # per keyword


class KeywordState(msgspec.Struct, frozen=True, kw_only=True):
    """From which score on a keyword counts."""

    threshold: float
    configured: float  # what the configuration or the model says
    release: float  # below which a keyword must fall to be told again, with the threshold that is configured
    lowest: float  # that a threshold may be


class StatusNow(msgspec.Struct, frozen=True, kw_only=True):
    """How a daemon is."""

    kwsd: str  # version
    schema: int  # of the events
    model: str
    ready: bool
    problems: tuple[str, ...]  # why nothing may be heard
    uptime_s: float
    detections: int
    windows: int  # scored since the start
    hop_ms: float  # between windows, as the load allows
    streams: tuple[StreamState, ...]
    muted: bool  # streams that come later are
    keywords: dict[str, KeywordState]


class Answer(_Event, frozen=True, kw_only=True, tag="answer"):
    """To whoever gave a command."""

    to: str  # the command
    ok: bool
    id: str | int | None = None  # the command's
    error: str | None = None
    exit_code: int | None = None  # of `kwsd ctl`, if it is not ok
    status: StatusNow | None = None


class _Identified(msgspec.Struct):
    id: str


Verdict = Heard | Rejected
AudioEvent = AudioLost | AudioRestored | AudioFault | AudioHealed
StreamEvent = StreamJoined | StreamLeft | Overrun | AudioEvent | Muted
SinkEvent = HookFailed | BrokerLost | BrokerRestored
Event = Verdict | StreamEvent | SinkEvent | Ready | Overload | Heartbeat | ThresholdSet | Reload | Shutdown
Line = bytes

EVENT_TYPES = tuple(sorted(str(kind.__struct_config__.tag) for kind in get_args(Event)))

_encoder = msgspec.json.Encoder()


class Stamp:
    """Numbers and dates the events of one run."""

    def __init__(self) -> None:
        self._seq = 0

    def line(self, event: Event) -> Line:
        """The event as one JSON line, with version, type, id, seq and time (UTC) in front."""
        fields = msgspec.to_builtins(event)
        now = time.time()
        head = {"v": VERSION, "type": fields.pop("type"), "id": ulid(now), "seq": self._seq, "time": iso(now)}
        self._seq += 1
        return _encoder.encode(head | fields) + b"\n"


def unnumbered(notice: Hello | Dropped | Refused | Scores | Answer) -> Line:
    """A line that concerns one reader or satellite only, and so has no place in the sequence."""
    fields = msgspec.to_builtins(notice)
    return _encoder.encode({"v": VERSION, "type": fields.pop("type"), "time": iso(time.time())} | fields) + b"\n"


def id_of(line: Line) -> str:
    """What a stamped line is called."""
    return msgspec.json.decode(line, type=_Identified).id


def iso(now: float) -> str:
    """Seconds since the epoch as UTC to the millisecond."""
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def ulid(now: float) -> str:
    """A sortable unique id: 48 bits of milliseconds, 80 random bits, in Crockford's base 32."""
    number = int(now * 1000) << 80 | secrets.randbits(80)
    return "".join(CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))
