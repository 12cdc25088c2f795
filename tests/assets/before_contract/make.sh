#!/bin/sh
# make.sh OLD: makes these files anew with the checkout OLD of revision 869268d.
# PYTHON is the interpreter that has its dependencies.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
old=$(cd "$1" && pwd)
python=$(command -v "${PYTHON:-python}")
assets=tests/assets/before_contract
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/$assets"
cp "$here"/*.yaml "$work/$assets"
cd "$work"
export PYTHONPATH="$old" OMP_NUM_THREADS=1

"$python" -m lavis_ext.datasets.mini_gqa data/mini_gqa --images 40
run() {  # run PROGRAM CONFIG NAME [OPTION...]
    program=$1 config=$2 name=$3
    shift 3
    "$python" "$old/$program" --cfg-path "$assets/$config" --options \
        datasets.gqa_fusion.mini_gqa.root=data/mini_gqa run.name="$name" "$@"
}
files() {  # files RUN FOLDER FILE...: copies of a run's files
    from=output/$1 to=$here/$2
    shift 2
    rm -rf "$to"
    mkdir -p "$to"
    for file; do cp "$from/$file" "$to/$file"; done
}

# Trained from scratch: the encoders are random, and go into the file with the fusion.
run train.py train.yaml scratch 'run.trainable=["*"]' run.small_train_size=null run.max_epoch=20 \
    run.val_every_steps=null run.init_lr=5e-3 run.warmup_steps=20
cp output/scratch/fusion_encoder_best.safetensors "$assets/weights.safetensors"
cp output/scratch/fusion_encoder_best.safetensors "$here/weights.safetensors"

run evaluate.py eval.yaml head model.fusion_weights="$assets/weights.safetensors"
files head evaluated_head metrics.json val_predictions.json testdev_predictions.json
run evaluate.py eval_pipeline.yaml pipeline
files pipeline evaluated_pipeline metrics.json testdev_predictions.json

# The fusion trained further; and what is in the folder of that run when it is killed after step 8:
# the state of step 6, which is also the best, and a log of ten lines.
run train.py train.yaml whole model.fusion_weights="$assets/weights.safetensors"
files whole whole log.jsonl metrics.json testdev_predictions.json
files whole cut config.yaml log.jsonl state_00000006.safetensors fusion_encoder_best.safetensors
head -n 10 output/whole/log.jsonl >"$here/cut/log.jsonl"
