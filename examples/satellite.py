#!/usr/bin/env python3
"""Be the ears of a kwsd elsewhere, print the words it hears, and connect again when it was restarted:

arecord -q -t raw -f S16_LE -r 16000 -c 1 | ./satellite.py kitchen HOST:7355 [TOKEN_FILE]
./satellite.py kitchen HOST:7355 [TOKEN_FILE] < recording.raw       # raw samples, 16 bits, 16 kHz, one channel
"""

import json
import os
import select
import socket
import sys
import time
from pathlib import Path

if len(sys.argv) not in (3, 4):
    raise SystemExit(__doc__)
name, address, *token_file = sys.argv[1:]
host, _, port = address.rpartition(":")
header = {"name": name, "rate": 16000, "format": "s16le"}
if token_file:
    header["token"] = Path(token_file[0]).read_text().strip()


def on_event(event):
    """Put your own here."""
    if event["type"] == "detection":
        print(event["keyword"], flush=True)
    elif event["type"] == "refused":  # now, or no longer heard
        raise ConnectionRefusedError(0, event["reason"])


def serve(connection):
    """Until stdin has ended and all of it was heard: then True; or until kwsd hangs up."""
    connection.sendall(json.dumps(header).encode() + b"\n")
    inputs, came = [0, connection], b""
    while True:
        ready, _, _ = select.select(inputs, [], [])
        if 0 in ready:
            if samples := os.read(0, 3200):
                connection.sendall(samples)  # kwsd takes it as fast as it would be spoken
            else:
                inputs.remove(0)
                connection.shutdown(socket.SHUT_WR)
        if connection in ready:
            if not (more := connection.recv(65536)):
                return 0 not in inputs
            *lines, came = (came + more).split(b"\n")
            for line in lines:
                on_event(json.loads(line))


while True:
    try:
        with socket.create_connection((host, int(port))) as connection:
            if serve(connection):
                break
    except OSError as error:
        print(f"{address}: {error.strerror}; trying again", file=sys.stderr, flush=True)
    time.sleep(1)
