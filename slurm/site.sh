# Settings of the site, sourced by every template: the one file to change at a site.
# What is set in the environment wins. slurm/README.md says what each is for.
# shellcheck shell=bash disable=SC2034 # job.sh reads what is set here

# Read by sbatch when it submits: `source slurm/site.sh` in the shell first, or use
# `supmim-scale submit`, which does.
# export SBATCH_PARTITION=gpu SBATCH_ACCOUNT=vision SBATCH_QOS=normal

# Modules, on the node that runs the batch script.
# module load cuda/12.8

# A container (pyxis), and any other option of srun for this site.
site_srun_options=()
# site_srun_options=(--container-image=/images/supmim.sqsh --container-mounts=/data,/runs)

# Python with supmim_scale in it, in the container if there is one.
: "${SUPMIM_PYTHON:=$SUPMIM_HOME/.venv/bin/python}"

# Folder of data sets, one folder each; folder of runs. Every node must see both.
: "${SUPMIM_DATA:=$SUPMIM_HOME/datasets}"
: "${SUPMIM_RUNS:=$SUPMIM_HOME/runs}"

# Requeues in a row that bring no new checkpoint before a job stops, and whether a job that
# crashed after it brought one is requeued too.
: "${SUPMIM_IDLE_REQUEUES:=3}"
: "${SUPMIM_REQUEUE_CRASHED:=no}"

# Network.
# export NCCL_SOCKET_IFNAME=ib0 NCCL_IB_HCA=mlx5

export SUPMIM_HOME SUPMIM_PYTHON SUPMIM_DATA SUPMIM_RUNS SUPMIM_IDLE_REQUEUES SUPMIM_REQUEUE_CRASHED
