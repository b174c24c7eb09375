# Settings of the site, sourced by every template: the one file to change at a site.
# Written so that what is set in the environment wins. slurm/README.md says what each is for.
# shellcheck shell=bash disable=SC2034 # job.sh reads what is set here

: "${SUPMIM_HOME:=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}"

# Read by sbatch when it submits: `source slurm/site.sh` in the shell first, or use
# `supmim-scale submit`, which does.
# export SBATCH_PARTITION="${SBATCH_PARTITION:-gpu}" SBATCH_ACCOUNT="${SBATCH_ACCOUNT:-vision}"

# Modules, on the node that runs the batch script.
# module load cuda/12.8

# A container (pyxis), and any other option of srun for this site.
site_srun_options=()
# site_srun_options=(--container-image=/images/supmim.sqsh --container-mounts=/data,/runs)

# Python with supmim_scale in it, in the container if there is one.
: "${SUPMIM_PYTHON:=$SUPMIM_HOME/.venv/bin/python}"

# Folder of data sets, one folder each; folder of runs. Every node must see both, under the
# same path inside a container and outside.
: "${SUPMIM_DATA:=$SUPMIM_HOME/datasets}"
: "${SUPMIM_RUNS:=$SUPMIM_HOME/runs}"

# The GPU of the partition, as supmim-scale plan names it: asked before a job is submitted.
: "${SUPMIM_GPU:=}"

# Starts in a row that bring no new checkpoint before a job ends, and whether a job that crashed
# after it brought one is requeued too (yes or no).
: "${SUPMIM_IDLE_STARTS:=3}"
: "${SUPMIM_REQUEUE_CRASHED:=no}"

# Network: of NCCL between GPUs, of gloo between hosts.
# export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-ib0}" NCCL_IB_HCA="${NCCL_IB_HCA:-mlx5}"
# export GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-ib0}"

export SUPMIM_HOME SUPMIM_PYTHON SUPMIM_DATA SUPMIM_RUNS SUPMIM_GPU
export SUPMIM_IDLE_STARTS SUPMIM_REQUEUE_CRASHED
