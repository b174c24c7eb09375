#!/usr/bin/env bash
# ViT-H/14 on ImageNet-21k.
#
#   sbatch slurm/vith_in21k.sh [RECIPE] [key=value ...]          options of sbatch before the script win
#   bash slurm/vith_in21k.sh [RECIPE] [key=value ...]            say what would be submitted
#   bash slurm/vith_in21k.sh --here smoke [key=value ...]        run a recipe on this machine
#
#SBATCH --job-name=vith_in21k
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x_%j.log
set -euo pipefail
SUPMIM_HOME=${SUPMIM_HOME:-${SLURM_SUBMIT_DIR:-$(cd "$(dirname "$0")/.." && pwd)}}
[[ -f $SUPMIM_HOME/slurm/site.sh ]] || {
  echo "error: found no slurm/site.sh in $SUPMIM_HOME; submit from the checkout or export SUPMIM_HOME" >&2
  exit 2
}
# shellcheck source=slurm/site.sh
source "$SUPMIM_HOME/slurm/site.sh"
# shellcheck source=slurm/job.sh
source "$SUPMIM_HOME/slurm/job.sh"

training_job vith14_in21k "$SUPMIM_DATA/imagenet-21k" "$@"
srun "${srun_options[@]}" "${command[@]}" || code=$?
end_job "$code"
