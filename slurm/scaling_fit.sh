#!/usr/bin/env bash
# Table, fitted laws, figures and page of a study, once its runs are over; study submit starts it.
#
#   sbatch --dependency=afterany:ARRAY slurm/scaling_fit.sh RUNS/STUDY [--metric class_loss]
#   bash slurm/scaling_fit.sh --here RUNS/STUDY
#
#SBATCH --job-name=scaling_fit
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --time=01:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x_%j.log
set -euo pipefail
# Slurm runs a copy of this file: the checkout is then where sbatch was called.
here=$(cd "$(dirname "$0")/.." && pwd)
[[ -f $here/slurm/site.sh ]] || here=${SUPMIM_HOME:-${SLURM_SUBMIT_DIR:-$here}}
[[ -f $here/slurm/site.sh ]] || {
  echo "error: found no slurm/site.sh in $here; expected the checkout; submit from it or export SUPMIM_HOME" >&2
  exit 2
}
SUPMIM_HOME=$here
# shellcheck source=slurm/site.sh
set +u; source "$here/slurm/site.sh" >&2; set -u # modules read unset variables, and talk
# shellcheck source=slurm/job.sh
source "$here/slurm/job.sh"

plain_job -m supmim_scale study report "$@"
srun "${srun_options[@]}" "${command[@]}" || code=$?
end_job "$code"
