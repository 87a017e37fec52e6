#!/usr/bin/env python3
"""Be the ears of a kwsd elsewhere, and print the words it hears:

arecord -q -t raw -f S16_LE -r 16000 -c 1 | ./satellite.py kitchen HOST:7355 [TOKEN_FILE]
./satellite.py kitchen HOST:7355 [TOKEN_FILE] < recording.raw       # raw samples, 16 bits, 16 kHz, one channel
"""

import json
import os
import socket
import sys
import threading
from pathlib import Path

name, address, *token_file = sys.argv[1:]
host, _, port = address.rpartition(":")
header = {"name": name, "rate": 16000, "format": "s16le"}
if token_file:
    header["token"] = Path(token_file[0]).read_text().strip()

connection = socket.create_connection((host, int(port)))
connection.sendall(json.dumps(header).encode() + b"\n")


def send():
    """Whatever comes on stdin; kwsd takes it as fast as it would be spoken."""
    while samples := os.read(0, 3200):
        connection.sendall(samples)
    connection.shutdown(socket.SHUT_WR)


threading.Thread(target=send, daemon=True).start()
for line in connection.makefile("rb"):
    event = json.loads(line)
    if event["type"] == "detection":
        print(event["keyword"], flush=True)
    elif event["type"] == "refused":
        sys.exit(f"refused: {event['reason']}")
