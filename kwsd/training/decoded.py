"""Recordings of words, each as a second of 16-bit samples: decoded once, and kept."""

import hashlib
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from kwsd.audio_format import SAMPLE_RATE, WINDOW
from kwsd.errors import IO, KwsdError
from kwsd.recording import read_recording
from kwsd.span import FRAME, frame_levels_dbfs, is_whole, noise_level, word_span

SILENT = 8  # of 32768, from the lowest sample to the highest: nothing was recorded
NEARLY_DB = 25.0  # under the loudest 10 ms: hardly a breath or an echo
CLICK = 7  # times 10 ms: what is no longer is no speech
UNUSED_S = 30 * 86_400.0  # after which what was decoded is deleted
DECODERS = 4  # threads: decoding is mostly waiting for the disk


class Said(NamedTuple):
    """A recording of a word."""

    path: Path
    word: str
    speaker: str


def cache_folder() -> Path:
    """Where decoded data sets are kept: `$XDG_CACHE_HOME/kwsd`, by default `~/.cache/kwsd`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kwsd"


def decoded(listing: Sequence[Said], subset: str) -> tuple[NDArray[np.int16], dict[str, NDArray[Any]]]:
    """Of recordings the samples (clips, 16000), and by name what else is known of each clip.

    Raises KwsdError if they cannot be kept."""
    cache = cache_folder() / f"{subset}-{_fingerprint(said.path for said in listing)}"
    kept = _kept(cache)
    if kept is None:
        shutil.rmtree(cache, ignore_errors=True)  # or it could not be replaced
        _decode(listing, cache)
        kept = _kept(cache)
    if kept is None:
        raise KwsdError(f"{cache}: the decoded clips cannot be read; set XDG_CACHE_HOME", exit_code=IO)
    return kept


def _kept(cache: Path) -> tuple[NDArray[np.int16], dict[str, NDArray[Any]]] | None:
    """What was decoded before; None if nothing was, or it is damaged."""
    try:
        with np.load(cache / "index.npz") as index:
            kept = np.load(cache / "samples.npy"), dict(index)
    except (OSError, ValueError, EOFError, LookupError, BadZipFile, zlib.error):
        return None
    with suppress(OSError):  # it may be somebody else's
        os.utime(cache)
    return kept


def _delete_unused(caches: Path) -> None:
    """What was decoded once, and not needed for a long time."""
    for cache in caches.iterdir():
        with suppress(OSError):
            if time.time() - cache.stat().st_mtime > UNUSED_S:
                shutil.rmtree(cache)


def _fingerprint(paths: Iterator[Path]) -> str:
    """A name for exactly these files as they are now: path, size, and times at which they or who may read them were
    changed."""
    digest = hashlib.sha256(b"clips 9")
    for path in paths:
        status = path.stat() if path.exists() else None
        known = f"{path}\0{status and (status.st_size, status.st_mtime_ns, status.st_ctime_ns)}\n"
        digest.update(os.fsencode(known))  # names may be of another encoding
    return digest.hexdigest()[:16]


def to_int16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """±1 to 16 bits; what was 16 bits before comes back exactly."""
    return np.clip(np.round(samples * 32768.0), -32768, 32767).astype(np.int16)


def fit(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """Any length to 16000 samples of 16 bits: zeros at the end, or the second around the loudest utterance."""
    first = 0
    if samples.size > WINDOW:
        start, end = word_span(samples)
        first = min(max((start + end - WINDOW) // 2, 0), samples.size - WINDOW)
    kept = to_int16(samples[first : first + WINDOW])
    return np.pad(kept, (0, WINDOW - len(kept)))


def sounding_s(recording: NDArray[np.float32]) -> float:
    """From the first to the last 10 ms that are nearly as loud as the loudest, in seconds, but for clicks."""
    levels = frame_levels_dbfs(recording)
    if levels.size == 0:
        return 0.0
    loudest, floor = float(levels.max()), noise_level(levels)
    loud = np.flatnonzero(levels >= max(loudest - NEARLY_DB, (loudest + floor) / 2.0))
    runs = [run for run in np.split(loud, np.flatnonzero(np.diff(loud) > 1) + 1) if run.size > CLICK]
    return float((runs[-1][-1] + 1 - runs[0][0]) * FRAME / SAMPLE_RATE) if runs else 0.0


def _decode(listing: Sequence[Said], cache: Path) -> None:
    """Decode all clips into the cache; it appears whole or not at all."""
    samples = np.zeros((len(listing), WINDOW), np.int16)
    whole, seconds, sounding = np.zeros(len(listing), bool), np.zeros(len(listing)), np.zeros(len(listing))
    kept, skipped = [], []

    def read(row: int) -> str | None:
        path = listing[row].path
        try:
            recording = read_recording(path)
        except KwsdError as error:
            return str(error)
        samples[row], whole[row], seconds[row] = fit(recording), is_whole(recording), recording.size / SAMPLE_RATE
        sounding[row] = sounding_s(recording)
        silent = int(samples[row].max()) - int(samples[row].min()) <= SILENT
        return f"{path}: is silent; record it again, or delete it" if silent else None

    with ThreadPoolExecutor(DECODERS) as pool:
        results = pool.map(read, range(len(listing)))
        progress = tqdm(results, total=len(listing), desc="decode", unit="clip", leave=False, disable=None)
        for row, failure in enumerate(progress):
            if failure:
                skipped.append(failure)
            else:
                kept.append(row)
    spans = np.array([word_span(samples[row].astype(np.float32)) for row in kept], np.int32).reshape(-1, 2)
    said = [listing[row] for row in kept]
    unfinished = cache.with_name(f"{cache.name}.{os.getpid()}")
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        np.savez(
            unfinished / "index.npz",
            words=np.array([each.word for each in said], str),
            speakers=np.array([each.speaker for each in said], str),
            paths=np.array([str(each.path) for each in said], str),
            spans=spans, skipped=np.array(skipped, dtype=str),
            whole=whole[kept], seconds=seconds[kept], sounding=sounding[kept],
        )  # fmt: skip
        np.save(unfinished / "samples.npy", samples[kept] if skipped else samples)
        for file in unfinished.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        unfinished.rename(cache)
        _delete_unused(cache.parent)
    except OSError as error:
        if not (cache / "samples.npy").exists():  # or another run was faster
            raise KwsdError(
                f"{cache}: cannot keep the decoded clips ({error}); set XDG_CACHE_HOME", exit_code=IO
            ) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
