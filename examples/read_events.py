#!/usr/bin/env python3
"""Act on words in Python: ./read_events.py [SOCKET], of a system service /run/kwsd/events.sock.

Waits for kwsd, and reads on when it was restarted.
"""

import json
import os
import socket
import sys
import time

PATH = sys.argv[1] if len(sys.argv) > 1 else f"{os.environ.get('XDG_RUNTIME_DIR', '/run')}/kwsd/events.sock"
WISH = {"command": "subscribe", "types": ["detection", "audio_lost", "audio_restored"]}


def on_word(event):
    """Put your own here."""
    print(f"{event['stream']}: {event['keyword']} ({event['score']:.2f})", flush=True)


def follow():
    """Everything one daemon says until it stops."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(PATH)
        connection.sendall(json.dumps(WISH).encode() + b"\n")
        for line in connection.makefile("rb"):
            if not line.endswith(b"\n"):  # kwsd stopped, and did not wait for us to read it all
                return
            event = json.loads(line)
            if event["type"] == "detection":
                on_word(event)
            elif event["type"] == "audio_lost":
                print(f"{event['stream']} does not hear: {event['reason']}", flush=True)


while True:
    try:
        follow()
    except OSError as error:
        print(f"{PATH}: {error.strerror}; trying again", file=sys.stderr)
    time.sleep(1)
