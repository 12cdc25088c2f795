#!/usr/bin/env bash
# Trains the miniature on mini-GQA (drawn on first use) and evaluates the file that training wrote.
# Takes the options of train.py, such as run.max_steps=100.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mkdir -p output
output=$(mktemp -d output/demo.XXXXXX)
python train.py --cfg-path projects/pnp-vqa/train/gqa_small.yaml \
    --options run.output_dir="$output" "$@"

run=$(ls -d "$output"/*/)
weights=${run}fusion_encoder_best.safetensors
echo
echo "Now the same figures from the saved file, in a fresh model:"
python evaluate.py --cfg-path projects/pnp-vqa/eval/gqa_small_eval.yaml \
    --options model.fusion_weights="$weights" run.output_dir="$output"
echo
echo "The run is in $run"
