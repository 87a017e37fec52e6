"""Which labels a model learns, and which of them a spoken word belongs to."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches

from kwsd.artefact import SILENCE, UNKNOWN
from kwsd.errors import ConfigError

COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")

OURS = (UNKNOWN, SILENCE)  # labels that are no words

# The 35 words of Speech Commands v0.02 (Warden 2018, arXiv:1804.03209, table 2).
ALL = tuple(
    sorted(
        (
            *COMMANDS,
            *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
            *("backward", "bed", "bird", "cat", "dog", "follow", "forward", "happy", "house", "learn"),
            *("marvin", "sheila", "tree", "visual", "wow"),
        )
    )
)

# Words that sound like a command: speech in which one is spoken says nothing about false alarms.
HOMOPHONES = {"know": "no", "write": "right", "wright": "right", "rite": "right", "noe": "no", "yep": "yes"}

# Scripts without spaces between words, as the names of their characters in Unicode begin.
DENSE = ("CJK UNIFIED", "CJK COMPATIBILITY", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER")


def parse_labels(text: str, at_least: int = 2) -> tuple[str, ...]:
    """`all` (35 words), `commands` (ten commands, unknown, silence) or a comma-separated list of labels, in Unicode's
    composed form (NFC): so that a word is the same however it was typed.

    Raises ConfigError for an empty or repeated label, one with `_` in front that is none of ours, or fewer than
    `at_least`.
    """
    if text == "all":
        return ALL
    if text == "commands":
        return (*COMMANDS, UNKNOWN, SILENCE)
    labels = tuple(unicodedata.normalize("NFC", part.strip()) for part in text.split(","))
    if not all(labels):
        raise ConfigError(f"--labels {text!r}: an empty label; write them as a,b,c")
    repeated = {label for label in labels if labels.count(label) > 1}
    if repeated:
        raise ConfigError(f"--labels: {', '.join(sorted(repeated))} is given more than once")
    for label in labels:
        if label.startswith("_") and label not in OURS:
            near = get_close_matches(label, OURS, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {' and '.join(OURS)}"
            raise ConfigError(f"--labels: {label} begins with _, and is no word; {hint}")
    if len(labels) < at_least:
        raise ConfigError(f"--labels {text}: a model tells words apart; give it at least two, such as {text},{UNKNOWN}")
    return labels


def label_of(keyword: str, labels: Sequence[str]) -> str:
    """The label that a word is, however it is composed and written; the word itself if it is none."""
    meant = _words(keyword)
    alike = (label for label in labels if meant and _words(label) == meant)
    return keyword if keyword in labels else next(alike, keyword)


def spoken_keywords(transcript: str, labels: tuple[str, ...]) -> Counter[str]:
    """How often each of the labels, which may be several words, or what sounds like it, is spoken in a transcript. A
    label in a script that is written without spaces is sought in the midst of others as well."""
    wanted = {words: label for label in labels if not label.startswith("_") and (words := _words(label))}
    dense = {words: label for words, label in wanted.items() if all(map(_is_dense, words))}

    def sound(word: str) -> str:
        return word if (word,) in wanted else HOMOPHONES.get(word, word)

    apart = {tuple(map(sound, words)): label for words, label in wanted.items() if words not in dense}
    heard = list(map(sound, _words(transcript)))
    spoken: Counter[str] = Counter()
    for length in {len(words) for words in apart}:
        runs = (tuple(heard[start : start + length]) for start in range(len(heard) - length + 1))
        spoken.update(apart[run] for run in runs if run in apart)
    together = "".join(_composed(transcript).split())
    return spoken + Counter({label: together.count("".join(words)) for words, label in dense.items()})


def _is_dense(word: str) -> bool:
    """Whether it is of a script that is written without spaces between words."""
    return all(unicodedata.name(c, "").removeprefix("HALFWIDTH ").startswith(DENSE) for c in word)


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")).casefold()


def _words(text: str) -> tuple[str, ...]:
    """In whatever script, however it is composed and written: of `Hey_Marvin` *hey* and *marvin*."""
    composed = _composed(text)
    letters = "".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" or c == "'" else " " for c in composed)
    return tuple(word for part in letters.split() if (word := part.strip("'")))
