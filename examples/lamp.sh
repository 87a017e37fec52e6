#!/bin/sh
# Switch a lamp by voice: ./lamp.sh [SOCKET], of a system service /run/kwsd/events.sock. Needs socat and jq.
# Put your own commands where it says echo.
socket=${1:-${XDG_RUNTIME_DIR:-/run}/kwsd/events.sock}

socat -u "UNIX-CONNECT:$socket" - |
    jq --unbuffered -r 'select(.type == "detection") | "\(.keyword) \(.stream)"' |
    while read -r word stream; do
        case $word in
            on) echo "lamp on in $stream" ;;
            off) echo "lamp off in $stream" ;;
            stop) echo "everything off" ;;
        esac
    done
