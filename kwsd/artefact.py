"""The artefact: one TorchScript or ONNX file with `kwsd.json` inside, and how to read the latter without torch."""

import base64
import hashlib
import io
import lzma
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kwsd import onnx_file
from kwsd.audio_format import SAMPLE_RATE, WINDOW
from kwsd.errors import IO, NO_INPUT, NO_PERMISSION, ModelError
from kwsd.mel import FFT, FRAME, FRAME_HOP, HIGHEST_HZ, LOWEST_HZ, MELS

FORMAT = 1
SILENCE = "_silence_"  # the label for nobody speaking
UNKNOWN = "_unknown_"  # the label for any other speech
METADATA = "kwsd.json"  # the name under a TorchScript archive's `extra/` folder, the key in ONNX metadata
SECOND = "kwsd.second"  # likewise, of a whole artefact of the same kind, in ONNX in base64: it makes a cascade
LARGEST_METADATA = 1 << 20  # bytes
LARGEST_MODEL = 1 << 28  # bytes
ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, OverflowError, RuntimeError,
    ValueError, OSError,
)  # fmt: skip
SEAL = b"kwsd.sha256"  # the key in ONNX metadata, at the very end, of the sha256 of all before it
OTHERS = "export one, or name another, such as commands or commands-fast, which kwsd comes with"
PICKLES = (b"\x80", b"(", b"}", b"]", b"c")  # how a bare Python pickle begins


class Geometry(msgspec.Struct, frozen=True, kw_only=True):
    """The log-mel front end inside the artefact, for people; the daemon does not need it."""

    mels: int
    frame: int  # samples
    frame_hop: int  # samples
    fft: int  # points
    lowest_hz: float
    highest_hz: float


GEOMETRY = Geometry(
    mels=MELS, frame=FRAME, frame_hop=FRAME_HOP, fft=FFT, lowest_hz=LOWEST_HZ, highest_hz=HIGHEST_HZ
)  # of this kwsd


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One measured number and the command that gave it."""

    name: str
    value: float
    low: float  # 95 % interval
    high: float
    command: str


class ArtefactInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What `kwsd.json` says of the weights it lies beside."""

    format: int
    architecture: str
    labels: tuple[str, ...]
    sample_rate: int  # Hz
    window: int  # samples
    features: Geometry | None
    step: int | None = None  # samples: it can be advanced by a multiple of these; None: it takes whole windows only
    thresholds: dict[str, float]  # recommended score per label
    figures: tuple[Figure, ...]
    data: str
    licence: str
    weights_sha256: str

    @property
    def id(self) -> str:
        """What events call the model: enough of the hash to tell it from any other."""
        return f"sha256:{self.weights_sha256[:16]}"


@dataclass(frozen=True)
class Artefact:
    """A model file, read once: what was checked is what is run, whatever becomes of the file."""

    path: Path
    data: bytes
    info: ArtefactInfo
    sha256: str  # of the file, in hexadecimal
    second: "Artefact | None" = None  # the network in it that is asked where this one suspects a keyword

    @property
    def is_onnx(self) -> bool:
        """Else it is TorchScript."""
        return _is_onnx(self.data)


def read_artefact(path: Path, sha256: str | None = None) -> Artefact:
    """Read and check a model without executing or unpickling anything in it.

    Raises ModelError if the file is missing, is no artefact, is damaged, does not fit this kwsd, or is not the one that
    was pinned by its `sha256`.
    """
    data = _read(path)
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise ModelError(
            f"{path}: its sha256 is {found}, not the one in model_sha256; it is not the model that was meant"
        )
    return _artefact(path, data, found)


def _artefact(path: Path, data: bytes, found: str, *, within: ArtefactInfo | None = None) -> Artefact:
    """Checked; `within` is said of the network it is the second of."""
    if not _is_whole(data):
        raise ModelError(f"{path}: is damaged, or was changed: its checksum is another; name it as kwsd export made it")
    metadata, nested = _read_onnx(path, data) if _is_onnx(data) else _read_torchscript(path, data)
    info = _decode(path, metadata)
    if info.format != FORMAT:
        raise ModelError(f"{path}: artefact format {info.format}; this kwsd reads {FORMAT}; export it again")
    if info.sample_rate != SAMPLE_RATE:
        raise ModelError(f"{path}: trained at {info.sample_rate} Hz; kwsd listens at {SAMPLE_RATE} Hz; retrain it")
    if info.window != WINDOW:
        raise ModelError(f"{path}: takes windows of {info.window} samples; kwsd makes {WINDOW}; retrain it")
    if len(info.labels) < 2 or len(set(info.labels)) != len(info.labels):
        raise ModelError(f"{path}: its labels are fewer than two or repeated; export it again")
    if all(label.startswith("_") for label in info.labels):
        raise ModelError(f"{path}: none of its labels is a word ({', '.join(info.labels)}); export another")
    wrong = [label for label, threshold in info.thresholds.items() if not 0.0 < threshold <= 1.0]
    if wrong:
        raise ModelError(f"{path}: its threshold of {wrong[0]} is not above 0 and up to 1; export it again")
    if info.step is not None and not 1 <= info.step <= WINDOW:
        raise ModelError(f"{path}: cannot be advanced by {info.step} samples; export it again")
    if within is not None and (nested is not None or set(info.labels) != set(within.labels)):
        raise ModelError(f"{path}: the second network in it does not fit the first; export it again")
    second = None if nested is None else _artefact(path, nested, hashlib.sha256(nested).hexdigest(), within=info)
    return Artefact(path, data, info, found, second)


def read_info(path: Path) -> ArtefactInfo:
    """Only what an artefact says of itself. Raises ModelError as `read_artefact` does."""
    return read_artefact(path).info


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_MODEL + 1)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such model; {OTHERS}", exit_code=NO_INPUT) from None
    except IsADirectoryError:
        raise ModelError(f"{path}: is a folder, not a model", exit_code=NO_INPUT) from None
    except PermissionError:
        raise ModelError(f"{path}: permission denied; make it readable", exit_code=NO_PERMISSION) from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); name another", exit_code=IO) from None
    if len(data) > LARGEST_MODEL:
        raise ModelError(f"{path}: is larger than {LARGEST_MODEL >> 20} MiB; name a file that kwsd export made")
    return data


def _is_onnx(data: bytes) -> bool:
    """ONNX models begin with the version of the format, then the name of who made it."""
    return len(data) > 2 and data[0] == 0x08 and data[1] < 0x80 and data[2] == 0x12


def sealed(model: bytes) -> bytes:
    """ONNX with its checksum behind it. To protobuf what follows a message is more of the same message, so this is one
    more entry of its metadata."""
    return model + _seal(model)


def _seal(model: bytes) -> bytes:
    digest = hashlib.sha256(model).hexdigest().encode()
    entry = b"\x0a%c%b\x12%c%b" % (len(SEAL), SEAL, len(digest), digest)  # key and value of a metadata_props
    return b"\x72%c%b" % (len(entry), entry)


def _is_whole(data: bytes) -> bool:
    """Whether a checksum is right, if there is one: TorchScript has others, and ONNX of long ago has none."""
    size = len(_seal(b""))
    return SEAL not in data[-size:] or data[-size:] == _seal(data[:-size])


def _read_onnx(path: Path, data: bytes) -> tuple[bytes, bytes | None]:
    """The metadata, and the second network's artefact if there is one."""
    try:
        entries = onnx_file.metadata(data)
        nested = base64.b64decode(entries[SECOND.encode()], validate=True) if SECOND.encode() in entries else None
    except ValueError as error:
        raise ModelError(f"{path}: is truncated or damaged ({error}); name a file that kwsd export made") from None
    metadata = entries.get(METADATA.encode())
    if metadata is None:
        raise ModelError(f"{path}: is ONNX without {METADATA}; name a file that kwsd export made")
    return metadata, nested


def _read_torchscript(path: Path, data: bytes) -> tuple[bytes, bytes | None]:
    """The metadata, and the second network's artefact if there is one."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            extra = {name.partition("/extra/")[2]: name for name in archive.namelist()}
            if METADATA not in extra:
                raise ModelError(f"{path}: {_what_it_is(archive.namelist())}")
            if archive.getinfo(extra[METADATA]).file_size > LARGEST_METADATA:
                raise ModelError(f"{path}: its {METADATA} is implausibly large; export it again")
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST_MODEL:
                raise ModelError(f"{path}: unpacks to more than {LARGEST_MODEL >> 20} MiB; export it again")
            if archive.testzip() is not None:  # torch itself does not look whether the checksums are right
                raise ModelError(f"{path}: is truncated or damaged; name a file that kwsd export made")
            return archive.read(extra[METADATA]), archive.read(extra[SECOND]) if SECOND in extra else None
    except ZIP_ERRORS:
        raise ModelError(f"{path}: {_what_bytes_are(data)}; name a file that kwsd export made") from None


def _what_it_is(names: list[str]) -> str:
    if any(name.endswith("/constants.pkl") for name in names):
        return f"is TorchScript without {METADATA}; name a file that kwsd export made"
    if any(name.endswith("data.pkl") for name in names):
        return "is a PyTorch checkpoint, not an artefact; make one of it with kwsd export"
    return "is a zip file, but no model; name a file that kwsd export made"


def _what_bytes_are(data: bytes) -> str:
    if data.startswith(b"PK"):
        return "is truncated or damaged"
    if data.startswith(PICKLES):
        return "looks like a Python pickle, which kwsd never loads"
    return "is not a model"


def _decode(path: Path, metadata: bytes) -> ArtefactInfo:
    try:
        return msgspec.json.decode(metadata, type=ArtefactInfo)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: its {METADATA} cannot be read ({error}); export it again") from None
