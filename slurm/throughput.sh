#!/usr/bin/env bash
# Throughput on one node; the benchmark starts its ranks itself.
#
#   sbatch slurm/throughput.sh --models vit_l16 --stages 1 3 --ranks 8
#   bash slurm/throughput.sh --here
#
#SBATCH --job-name=throughput
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=02:00:00
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

plain_job "$SUPMIM_HOME/benchmarks/throughput.py" "$@"
srun "${srun_options[@]}" "${command[@]}" || code=$?
end_job "$code"
