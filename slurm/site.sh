# Site settings, sourced by every template. The one file to change at a site.
# Values set in the environment before sbatch win.
# shellcheck shell=bash

# Folder of this checkout and its Python; a container or module line goes here too.
: "${SUPMIM_HOME:=${SLURM_SUBMIT_DIR:-$PWD}}"
: "${SUPMIM_PYTHON:=$SUPMIM_HOME/.venv/bin/python}"

# Folder that holds the data sets, one folder each.
: "${SUPMIM_DATA:=$SUPMIM_HOME/datasets}"

# Folder that runs are written to; every node must see it.
: "${SUPMIM_RUNS:=$SUPMIM_HOME/runs}"

# Network variables of the site, for example:
# export NCCL_SOCKET_IFNAME=ib0

export SUPMIM_HOME SUPMIM_PYTHON SUPMIM_DATA SUPMIM_RUNS
