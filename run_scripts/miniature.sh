#!/usr/bin/env bash
# Trains every part of the miniature by its recipe and puts the weights into the package.
# Takes options of train.py for all of them, such as run.max_steps=100. With "fine" as the first
# argument, the parts of the model type mini_fine, whose EfficientSAM starts from mini's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Each of BLIP's recipes starts from what the one before has put into the package.
recipes=(projects/mini/{efficient_sam,reader,blip_patches,blip_close,blip_whole}.yaml)
recipes+=(projects/pnp-vqa/train/mini_train.yaml)
package=lavis_ext/miniature
if [ "${1:-}" = fine ]; then
    shift
    recipes=(projects/mini/fine/{efficient_sam,blip,blip_sentences,reader}.yaml)
    package=lavis_ext/miniature/fine
fi
mkdir -p output
output=$(mktemp -d output/miniature.XXXXXX)
for recipe in "${recipes[@]}"; do
    python train.py --cfg-path "$recipe" --options run.output_dir="$output" "$@"
    python -m lavis_ext.pretraining.ship --out "$package" "$output/$(basename "$recipe" .yaml)"-*/
done
