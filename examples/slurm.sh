#!/bin/bash
# A Ray cluster of all nodes of a Slurm job, and one build on it: sbatch examples/slurm.sh
#SBATCH --job-name=segsmith
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
set -euo pipefail

RUN=${RUN:-$SLURM_SUBMIT_DIR/runs/pets} # on a file system that all nodes share
PORT=6379
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export RAY_USAGE_STATS_ENABLED=0

srun --nodes=1 --ntasks=1 --overlap -w "$HEAD" \
    ray start --head --port="$PORT" --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus=8 --block &
sleep 20
srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --overlap --exclude="$HEAD" \
    ray start --address="$HEAD:$PORT" --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus=8 --block &

# Submit the same job again to resume.
srun --nodes=1 --ntasks=1 --overlap -w "$HEAD" \
    segsmith build --preset gpu --classes "cat,dog,bus" --per-class 10000 --out "$RUN" \
    --engine ray --address "$HEAD:$PORT"
