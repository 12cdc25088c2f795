#!/usr/bin/env bash
# Train a sweep's grid as a SLURM array, one run a task, each on one GPU:
#
#   grid=(--cfg-path CONFIG.yaml --grid model.fusion.name=difnet,sum run.seed=1,2,3)
#   sbatch --array="$(python -m lavis_ext.sweep "${grid[@]}" --print-array)" --gpus-per-task=1 \
#       run_scripts/slurm_sweep.sh "${grid[@]}"
#   python -m lavis_ext.sweep "${grid[@]}" --report-only
#
# What follows the script are the sweep's own arguments. Two minutes before the time limit, and on
# preemption, a task gets SIGTERM: its run saves its state, the task ends with code 143, and is
# requeued. Any other code but 0 is a fault, and isn't tried again.
#SBATCH --job-name=lavis_ext
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -euo pipefail

code=0
srun python -m lavis_ext.sweep "$@" --index "$SLURM_ARRAY_TASK_ID" || code=$?

if [[ $code == 143 ]]; then
    echo "preempted; the task is requeued"
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "$code"
