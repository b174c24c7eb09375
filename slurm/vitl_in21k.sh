#!/usr/bin/env bash
# ViT-L/16 on ImageNet-21k, supervised + masked image modelling under ZeRO-3.
#
#   sbatch slurm/vitl_in21k.sh [RECIPE] [key=value ...]      submit, with overrides
#   sbatch --partition=P --account=A --nodes=8 slurm/vitl_in21k.sh
#   bash slurm/vitl_in21k.sh [key=value ...]                 say what would be submitted
#   bash slurm/vitl_in21k.sh --dry-run                       run the smoke recipe here, no Slurm
#
#SBATCH --job-name=vitl_in21k
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --open-mode=append
#SBATCH --output=%x_%j.log
set -euo pipefail

# Slurm runs a copy of this script; the checkout is where sbatch was called.
home=${SUPMIM_HOME:-${SLURM_SUBMIT_DIR:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}}
export SUPMIM_HOME=$home
# shellcheck source=slurm/site.sh
source "$home/slurm/site.sh"

recipe=vitl16_in21k
data=(input.root="$SUPMIM_DATA/imagenet-21k")
if [[ $# -gt 0 && $1 != *=* && $1 != --* ]]; then
  recipe=$1
  data=() # another recipe names its own input.root, or the command line does
  shift
fi

if [[ ${1:-} == --dry-run ]]; then
  shift
  [[ -d $SUPMIM_DATA/smoke ]] || "$SUPMIM_PYTHON" -m supmim_scale data synth "$SUPMIM_DATA/smoke"
  exec "$SUPMIM_PYTHON" -m supmim_scale train smoke --ranks 2 input.root="$SUPMIM_DATA/smoke" \
    log.run_dir="$SUPMIM_RUNS/dry_run_$(date +%Y%m%d_%H%M%S)" "$@"
fi

if [[ -z ${SLURM_JOB_ID:-} ]]; then
  echo "would submit: sbatch $0 $recipe $*"
  echo "to run the smoke recipe on this machine instead: bash $0 --dry-run"
  exit 0
fi

export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
srun --kill-on-bad-exit=1 "$SUPMIM_PYTHON" -m supmim_scale train "$recipe" \
  log.run_dir="$SUPMIM_RUNS/${SLURM_JOB_NAME}_${SLURM_JOB_ID}" ${data[@]+"${data[@]}"} "$@"
