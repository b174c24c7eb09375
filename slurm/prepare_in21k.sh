#!/usr/bin/env bash
# ImageNet-21k from class folders to checked shards: pack, index, verify; resumes where it stopped.
#
#   sbatch slurm/prepare_in21k.sh --images FOLDER [key=value ...]   of FOLDER/train and FOLDER/val
#   bash slurm/prepare_in21k.sh --here --images FOLDER
#
#SBATCH --job-name=prepare_in21k
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
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

root=(input.root="$SUPMIM_DATA/imagenet-21k")
for word in "$@"; do
  [[ $word != input.root=* ]] || root=()
done
plain_job -m supmim_scale data prepare vitl16_in21k "${root[@]}" "$@"
srun "${srun_options[@]}" "${command[@]}" || code=$?
end_job "$code"
