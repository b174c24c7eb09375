#!/usr/bin/env bash
# Measured peak memory beside the planner's, on one node.
#
#   sbatch slurm/memory.sh --models vit_l16
#   bash slurm/memory.sh --here
#
#SBATCH --job-name=memory
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=02:00:00
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

plain_job "$SUPMIM_HOME/benchmarks/memory.py" "$@"
srun "${srun_options[@]}" "${command[@]}" || code=$?
end_job "$code"
