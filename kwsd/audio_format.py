"""The one audio format behind every source: what the ring, the windows and the networks agree on."""

SAMPLE_RATE = 16_000  # samples per second, mono float32, full scale ±1
SLOWEST, FASTEST = 4000, 384_000  # samples per second that a source may have
WINDOW = 16_000  # samples in the window a network sees: one second


def samples(seconds: float) -> int:
    """Whole samples in a duration given in seconds."""
    return round(seconds * SAMPLE_RATE)


def seconds(sample_index: int) -> float:
    """The time of a sample index in seconds from the stream's start, to the millisecond."""
    return round(sample_index / SAMPLE_RATE, 3)
