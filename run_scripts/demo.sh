#!/usr/bin/env bash
# Trains the fusion of the miniature on mini-GQA (drawn on first use), answers testdev with the whole
# pipeline, scores where it looks, and asks it about one picture.
# Takes the options of train.py, such as run.max_steps=100. An interrupted demo is continued; to start
# anew, remove its folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mkdir -p output
output=""
for folder in output/demo.*/; do
    if [ -d "$folder" ] && [ ! -e "$folder/finished" ]; then
        output=${folder%/}
    fi
done
if [ -n "$output" ]; then
    echo "Continuing the demo in $output; to start anew, remove that folder."
else
    output=$(mktemp -d output/demo.XXXXXX)
fi

done_already() {
    compgen -G "$output/$1-*/metrics.json" >/dev/null
}
if ! done_already mini_train; then
    python train.py --cfg-path projects/pnp-vqa/train/mini_train.yaml \
        --options run.output_dir="$output" run.resume=auto "$@"
fi
weights=$(ls "$output"/mini_train-*/fusion_encoder_best.safetensors | tail -n 1)

evaluate() {
    echo
    echo "$1:"
    if done_already "$2"; then
        echo "evaluated before, in $output"
        return
    fi
    python evaluate.py --cfg-path "projects/pnp-vqa/eval/$2.yaml" \
        --options model.fusion_weights="$weights" run.output_dir="$output"
}
evaluate "The whole pipeline: heat map, points, masks, captions, answer" mini_eval
evaluate "Where it looks" mini_pointing

echo
python -m lavis_ext.ask data/mini_gqa/images/0003964.jpg \
    "what color is the dotted ring?" "which angular shape is dotted?" \
    --weights "$weights" --out "$output/asked.png"
touch "$output/finished"
echo
echo "Runs and the picture are in $output"
