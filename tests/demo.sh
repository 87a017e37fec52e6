#!/bin/sh
# Usage: demo.sh KWSD. Hear words: from the microphone, else from a recording played in real time through
# the very same daemon. `make demo` runs it.
set -eu
kwsd=$1
here=$(dirname "$0")
packed=$here/../../shared/data/speech_commands.opus
clips=${KWSD_DATA:+$KWSD_DATA/SpeechCommands/speech_commands_v0.02}
clips=${clips:-$packed}

if "$kwsd" devices 2>/dev/null | grep -q .; then
    echo "Say yes, no, up, down, left, right, on, off, stop or go. Ctrl-C ends." >&2
    exec "$kwsd" run --set sinks.socket.enabled=false
fi
if [ -e "$clips" ]; then
    echo "No microphone here. Playing real recordings of people the model never heard:" >&2
    tape=$(mktemp --suffix .wav)
    trap 'rm -f "$tape"' EXIT
    "$(dirname "$kwsd")/python" "$here/make_tape.py" "$clips" "$tape" >&2
else
    echo "No microphone here. Playing a recording (a speech synthesiser saying the ten commands):" >&2
    tape=$here/../kwsd/demo.flac
fi
"$kwsd" run --source "$tape" --set sinks.socket.enabled=false
