#!/usr/bin/env bash
# Trains the fusion of the miniature on mini-GQA (drawn on first use), answers testdev with the whole
# pipeline, scores where it looks, and asks it about one picture.
# Takes the options of train.py, such as run.max_steps=100.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mkdir -p output
output=$(mktemp -d output/demo.XXXXXX)
python train.py --cfg-path projects/pnp-vqa/train/mini_train.yaml \
    --options run.output_dir="$output" "$@"
weights=$(ls "$output"/*/fusion_encoder_best.safetensors)

evaluate() {
    echo
    echo "$1:"
    python evaluate.py --cfg-path "projects/pnp-vqa/eval/$2.yaml" \
        --options model.fusion_weights="$weights" run.output_dir="$output"
}
evaluate "The whole pipeline: heat map, points, masks, captions, answer" mini_eval
evaluate "Where it looks" mini_pointing

echo
python -m lavis_ext.ask data/mini_gqa/images/0003964.jpg \
    "what color is the dotted ring?" "which angular shape is dotted?" \
    --weights "$weights" --out "$output/asked.png"
echo
echo "Runs and the picture are in $output"
