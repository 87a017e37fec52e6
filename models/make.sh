#!/bin/sh
# Makes the shipped models anew: models/make.sh DATA [WORK]. Two networks are trained, by the recipes commands.yaml and
# commands-fast.yaml beside this file, the second of them with the first as teacher: commands-fast is that one alone, and
# commands both, of which the larger is asked where the smaller suspects a word.
# DATA holds SpeechCommands/, speech/train (talk with its transcripts) and music. Two hours on two cores. Needs the
# packages flite espeak-ng rhvoice rhvoice-english (of Debian 12 the last two are in its section non-free, as what the
# voices, LGPL-2.1+, were trained with is not in the package), those that game_voices.py names, and for more music:
# singularity-music marsshooter-data flare-game supertuxkart-data trackballs-data redeclipse-data davegnukem-data zaz-data
# starfighter-data hyperrogue-music 0ad-data.
# models/README.md says where the thresholds come from.
set -eu
data=${1:?usage: models/make.sh DATA [WORK]}
here=$(dirname "$0")
work=${2:-$(mktemp -d)}
trap '[ "$?" = 0 ] || echo "to go on where this broke off: $0 $data $work" >&2' EXIT
mkdir -p "$work/music"  # one folder: noise of each --noise comes up as often
for songs in games/singularity/music games/marsshooter/audio/music games/flare/mods/fantasycore/music \
    games/supertuxkart/data/music games/trackballs/music games/redeclipse/data/sounds/music \
    games/davegnukem/music/eric_matyas games/zaz starfighter/music hyperrogue/music games/0ad/mods/public/public.zip; do
    [ -e "/usr/share/$songs" ] || { echo "/usr/share/$songs: not there; install its package" >&2; exit 2; }
    name=$(echo "${songs#games/}" | cut -d / -f 1)
    case $songs in
    *.zip) python3 - "/usr/share/$songs" "$work/music/$name" <<'EOF' ;;
import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as archive:
    archive.extractall(sys.argv[2], [name for name in archive.namelist() if name.startswith("audio/music/")])
EOF
    *) ln -sfn "/usr/share/$songs" "$work/music/$name" ;;
    esac
done
train() {
    name=$1; shift
    [ ! -e "$work/$name.ckpt" ] || set -- "$@" --resume
    kwsd train --recipe "$here/$name.yaml" --data "$data" --words "$work/voices" --negatives "$data/speech/train" \
        --negatives "$work/talk" --noise "$data/music" --noise "$work/music" --out "$work/$name.ckpt" "$@"
}
make() {  # whole, or not at all
    name=$1; shift
    [ -e "$work/$name" ] || { rm -rf "$work/new"; "$@" "$work/new"; mv "$work/new" "$work/$name"; }
}
# Words like the commands, each once a voice: a network that has heard but thirty words besides its own takes any other for
# one of them. Not among them is what cannot be told from a command, such as know, write and, where it is stressed, of.
like_commands='
    yet yeah yell chess less guess mess dress press best west rest
    note nose gnome noon now snow node nope known mode moat low so toe dough row though mow bow show
    cup pup app ape pub putt hub but cut nut us hut hop hope
    town dime dean dine den dumb done noun brown crown frown gown sound ground doubt
    lift loft lend less let leg lap laugh lest levy melt felt theft deft heft
    ride light slight rate route rice rise ripe rhyme bright height white fright kite tight might
    own one awning onto dawning gone john lawn pawn yawn honour
    often awful offer cough doff soft loft office cuff tough rough puff
    top stock stopped stab step stoop stump staff spot shop drop crop chop start stay
    goat gold ghost goal goes good girl cold coat coal toad load road code gap gate'
voices() {
    for program in flite espeak-ng RHVoice-test; do
        command -v "$program" >/dev/null || { echo "$program: not there; install its package" >&2; exit 2; }
    done
    # Fewer of the commands, and the network would learn that such a voice says none.
    kwsd synthesise "$1" yes no up down left right on off stop go --count 24
    # shellcheck disable=SC2086
    kwsd synthesise "$1" $(printf '%s\n' $like_commands | sort -u) --count 1
    : > "$1/validation_list.txt"  # all of it is to train on: how well a model hears people, only people can tell
}
make voices voices
make talk python3 "$here/game_voices.py" queen
train commands
kwsd export "$work/commands.ckpt" -o "$work/teacher.onnx"
train commands-fast --teacher "$work/teacher.onnx"
for kind in onnx pt; do
    kwsd export "$work/commands-fast.ckpt" -o "$here/commands-fast.$kind" --data "$data"
    kwsd export "$work/commands-fast.ckpt" --second "$work/commands.ckpt" -o "$here/commands.$kind" --data "$data" \
        --threshold 0.75 --threshold left=0.55 --threshold right=0.7 --threshold no=0.6 --threshold stop=0.7 \
        --threshold go=0.5 --threshold on=0.65 --threshold off=0.65
done
[ -n "${2:-}" ] || rm -rf "$work"
