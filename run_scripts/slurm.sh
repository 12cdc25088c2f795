#!/usr/bin/env bash
# Train on SLURM, one task a GPU, and go on after preemption, time limit or a node's failure:
#
#   sbatch --nodes=1 --ntasks-per-node=4 --gpus-per-node=4 --cpus-per-task=8 --time=24:00:00 \
#       run_scripts/slurm.sh projects/pnp-vqa/train/gqa_train.yaml run.max_epoch=5
#
# What follows the config are options of train.py. Submit it in the environment that has the package.
# The run's folder is named by the job, which keeps its number when it is requeued. Two minutes
# before the time limit the tasks get SIGTERM, as they do on preemption: they save the run's state
# and end with code 143. Any other code but 0 is a fault, and isn't tried again.
#SBATCH --job-name=lavis_ext
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -euo pipefail
# SLURM runs a copy of this file, in the folder that it was submitted from.
config=$1
shift

export MASTER_ADDR MASTER_PORT WORLD_SIZE=$SLURM_NTASKS
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))

code=0
# SLURM would end the others of a task that fails by SIGTERM, and that looks like preemption; they
# notice by themselves.
# shellcheck disable=SC2016  # each task has its own rank
srun --kill-on-bad-exit=0 bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec python "$@"' \
    train.py train.py --cfg-path "$config" \
    --options run.name="$(basename "$config" .yaml)-$SLURM_JOB_ID" run.resume=auto "$@" || code=$?

if [[ $code == 143 ]]; then
    echo "preempted; the job is requeued"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
