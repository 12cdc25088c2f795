#!/usr/bin/env bash
# Trains every part of the miniature by its recipe and puts the weights into the package.
# Takes options of train.py for all of them, such as run.max_steps=100.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mkdir -p output
output=$(mktemp -d output/miniature.XXXXXX)
# Each of BLIP's recipes starts from what the one before has put into the package.
recipes=(projects/mini/{efficient_sam,reader,blip_patches,blip_close,blip_whole}.yaml)
for recipe in "${recipes[@]}" projects/pnp-vqa/train/mini_train.yaml; do
    python train.py --cfg-path "$recipe" --options run.output_dir="$output" "$@"
    python -m lavis_ext.pretraining.ship "$output/$(basename "$recipe" .yaml)"-*/
done
