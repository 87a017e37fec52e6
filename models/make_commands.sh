#!/bin/sh
# Makes commands.onnx and commands.pt anew: models/make_commands.sh DATA
# DATA holds SpeechCommands/, speech/train (talk with its transcripts) and music. About an hour on two cores.
# The hyper-parameters are dstcn-base's in kwsd/training/recipe.py; models/README.md says where the thresholds come from.
set -eu
data=${1:?usage: models/make_commands.sh DATA}
here=$(dirname "$0")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 "$here/synthesise.py" "$work/voices"
train() {
    kwsd train --model dstcn-base --data "$data" --words "$work/voices" --negatives "$data/speech/train" \
        --noise "$data/music" --out "$work/$1.ckpt" $2
}
train first ""
train commands "--init $work/first.ckpt --epochs 12 --learning-rate 6e-4"
for form in onnx pt; do
    kwsd export "$work/commands.ckpt" -o "$here/commands.$form" --data "$data" \
        --threshold 0.65 --threshold yes=0.7 --threshold up=0.7 --threshold down=0.825 --threshold right=0.8
done
