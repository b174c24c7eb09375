#!/usr/bin/env bash
# The table of a study's runs, once its array is over; supmim-scale study submit starts it.
#
#   sbatch --dependency=afterany:ARRAY slurm/scaling_fit.sh RUNS/STUDY
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
SUPMIM_HOME=${SUPMIM_HOME:-${SLURM_SUBMIT_DIR:-$(cd "$(dirname "$0")/.." && pwd)}}
[[ -f $SUPMIM_HOME/slurm/site.sh ]] || {
  echo "error: found no slurm/site.sh in $SUPMIM_HOME; submit from the checkout or export SUPMIM_HOME" >&2
  exit 2
}
# shellcheck source=slurm/site.sh
source "$SUPMIM_HOME/slurm/site.sh"
# shellcheck source=slurm/job.sh
source "$SUPMIM_HOME/slurm/job.sh"

plain_job -m supmim_scale study collect "$@"
srun "${srun_options[@]}" "${command[@]}" || code=$?
end_job "$code"
