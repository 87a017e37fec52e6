"""What `config.yaml` says of each key is found: above the key, beside it, and in examples."""

import pytest

from kwsd.config import (
    CaptureConfig,
    Config,
    FileConfig,
    HookConfig,
    KeywordConfig,
    MicrophoneConfig,
    PcmConfig,
    SocketConfig,
)
from kwsd.config_comments import comments

TEXT = """\
# A file that is about nothing.
#   key: value   # of no section

# What is above.
# In two lines.
model: here   # not this
device: auto  # What is beside.
streams:
  - source: microphone
    name: mic              # how it is called
    channel: 1             # from 1
    block_ms: 50           # short: much work
                           # long: late
  # - source: file
  #   name: tape
  #   path: tape.wav       # a recording
  # - source: pcm
  #   path: audio.fifo     # a FIFO
sinks:
  stdout: true
  socket:
    path: auto             # where
capture:
  dead_after_s: 30
events:
  rejected: false

# of no section
debouncer:
  threshold: 0.5           # look from here on ...
  release: 0.4             # ... and to here

# For example:
#   - events: [ready]      # which types
#     # shell: "date >> x" # a command
#                          # for sh
hooks: []
"""


@pytest.mark.parametrize(
    ("section", "key", "comment"),
    [
        (Config, "model", "What is above.\nIn two lines."),
        (Config, "device", "What is beside."),
        (Config, "streams", None),
        (Config, "debouncer", "of no section"),
        (Config, "events", None),  # the key of a hook is another one
        (MicrophoneConfig, "name", "how it is called"),
        (MicrophoneConfig, "block_ms", "short: much work long: late"),
        (MicrophoneConfig, "device", None),
        (FileConfig, "name", "how it is called"),
        (FileConfig, "path", "a recording"),
        (PcmConfig, "path", "a FIFO"),
        (SocketConfig, "path", "where"),
        (SocketConfig, "queue", None),
        (CaptureConfig, "dead_after_s", None),
        (KeywordConfig, "threshold", "look from here on"),
        (KeywordConfig, "release", "and to here"),
        (HookConfig, "events", "which types"),
        (HookConfig, "shell", "a command for sh"),
        (HookConfig, "name", None),
    ],
)
def test_a_key_is_told_with_its_comment(section, key, comment):
    assert comments(TEXT)[section].get(key) == comment


def test_an_example_stays_as_it_is_written():
    assert comments(TEXT)[Config]["hooks"].splitlines()[:2] == [
        "For example:",
        "  - events: [ready]      # which types",
    ]
