#!/usr/bin/env bash
# One run of a scaling study, an element of a job array: line N of the study's manifest.
#
#   supmim-scale study submit STUDY.yaml --limit 4     array, and the fit after it
#   sbatch --array=0-5%2 slurm/scaling_study.sh RUNS/STUDY/manifest.tsv
#   bash slurm/scaling_study.sh --here STUDY.yaml      every run on this machine, one by one
#
#SBATCH --job-name=scaling_study
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x_%A_%a.log
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

study_job "$@"
srun "${srun_options[@]}" "${command[@]}" || code=$?
end_job "$code"
