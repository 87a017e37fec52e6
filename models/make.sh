#!/bin/sh
# Makes a shipped model anew: models/make.sh NAME DATA, where NAME.yaml beside this file is its recipe.
# DATA holds SpeechCommands/, speech/train (talk with its transcripts) and music. An hour or two on two cores. Needs the
# packages that synthesise.py and game_voices.py name, and for more music: singularity-music marsshooter-data flare-game
# supertuxkart-data.
# models/README.md says where the thresholds in the recipes come from.
set -eu
name=${1:?usage: models/make.sh NAME DATA} data=${2:?usage: models/make.sh NAME DATA}
here=$(dirname "$0")
[ -f "$here/$name.yaml" ] || { echo "$here/$name.yaml: no such recipe" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
games=/usr/share/games
mkdir "$work/music"  # one folder: noise of each comes up as often
for songs in singularity/music marsshooter/audio/music flare/mods/fantasycore/music supertuxkart/data/music; do
    [ -d "$games/$songs" ] || { echo "$games/$songs: not there; install its package" >&2; exit 2; }
    ln -s "$games/$songs" "$work/music/${songs%%/*}"
done
train() {
    out=$1; shift
    kwsd train --recipe "$here/$name.yaml" --data "$data" --words "$work/voices" --negatives "$data/speech/train" \
        --negatives "$work/talk" --noise "$data/music" --noise "$work/music" --out "$work/$out.ckpt" "$@"
}
python3 "$here/synthesise.py" "$work/voices"
python3 "$here/game_voices.py" queen "$work/talk"
case $name in
commands) train "$name" ;;
*) train "$name" --teacher "$here/commands.onnx" ;;
esac
kwsd export "$work/$name.ckpt" -o "$here/$name.onnx" --data "$data"
[ ! -f "$here/$name.pt" ] || kwsd export "$work/$name.ckpt" -o "$here/$name.pt" --data "$data"
