# What all templates share, around the one srun of each; sourced after site.sh.
#
# Values are compared with [ ], never inside (( )) or with -lt inside [[ ]]: those evaluate what
# a variable holds, and with it any command substitution in it.
# shellcheck shell=bash disable=SC2034,SC2154 # templates read what is set here, site.sh sets the rest

script=$0
job=${SLURM_JOB_ID:-}
# An element's own id may be that of its whole array.
[[ -z ${SLURM_ARRAY_TASK_ID:-} ]] || job=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}
srun_options=(--kill-on-bad-exit=1 --cpu-bind=cores "${site_srun_options[@]}")
command=() run='' code=0

fail() {
  echo "error: $*" >&2
  exit 2
}

say() {
  echo "[$(date +%FT%T)] job $job, restart ${SLURM_RESTART_COUNT:-0}: $*"
}

# training_job RECIPE DATA_FOLDER [RECIPE] [key=value ...]
# The command of every task. Another recipe than the template's brings its own input.root.
training_job() {
  local recipe=$1 words=(input.root="$2") word mode=
  shift 2
  case ${1:-} in --here | --words) mode=$1 && shift ;; esac
  if [[ $# -gt 0 && $1 != *=* && $1 != -* ]]; then
    [[ $1 == "$recipe" ]] || words=()
    recipe=$1
    shift
  fi
  run=$SUPMIM_RUNS/${SLURM_JOB_NAME:-$(basename "$script" .sh)}_${job:-$(date +%Y%m%d_%H%M%S)}
  words=("$recipe" "${words[@]}" log.run_dir="$run" "$@")
  for word in "${words[@]}"; do
    [[ $word != log.run_dir=* ]] || run=${word#*=}
  done
  [[ $mode != --words ]] || { printf '%s\n' "${words[@]}" && exit; }
  command=("$SUPMIM_PYTHON" -m supmim_scale train "${words[@]}")
  [[ $mode != --here ]] || exec "${command[@]}" --ranks "$(gpus_here)"
  begin_job
}

# study_job MANIFEST: the run of this array element, a line of the manifest.
study_job() {
  local manifest=${1:-} words=() fix="start with: supmim-scale study submit STUDY.yaml"
  [[ $manifest != --here ]] || exec "$SUPMIM_PYTHON" -m supmim_scale study run "${2:-}"
  [[ -n $manifest ]] || fail "$script: found no manifest; expected a study's manifest.tsv; $fix"
  if [[ -n $job ]]; then
    [[ -r $manifest ]] || fail "$script: found no file $manifest; expected a study's manifest.tsv; $fix"
    [[ ${SLURM_ARRAY_TASK_ID:-} =~ ^[0-9]+$ ]] || fail "$script: found no array; expected one; $fix"
    IFS=$'\t' read -r -a words < <(sed -n "$((10#$SLURM_ARRAY_TASK_ID + 1))p" "$manifest") || true
    [[ ${#words[@]} -gt 1 ]] || fail "$manifest: found no line for element $SLURM_ARRAY_TASK_ID; expected one a run; $fix"
    run=$(dirname "$manifest")/${words[0]}
  fi
  command=("$SUPMIM_PYTHON" -m supmim_scale train "${words[@]:1}" log.run_dir="$run")
  begin_job
}

# plain_job WORD ...: a command that is no training.
plain_job() {
  local here=no words=() word
  for word in "$@"; do
    if [[ $word == --here ]]; then here=yes; else words+=("$word"); fi
  done
  command=("$SUPMIM_PYTHON" "${words[@]}")
  [[ $here == no ]] || exec "${command[@]}"
  begin_job
}

# Outside Slurm: say what would be submitted, and leave. Inside: what holds for every task.
begin_job() {
  if [[ -z $job ]]; then
    echo "would submit: sbatch $script, with"
    sed -n 's/^#SBATCH /  /p' "$script"
    echo "every task would run: ${command[*]}"
    echo "to run it on this machine: bash $script --here ..."
    exit 0
  fi
  # sbatch sets the first, srun since 22.05 reads the second.
  export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}
  export PYTHONUNBUFFERED=1
  export_address
  trap : TERM # srun passes it to the ranks, which save; this shell looks at what they left
  before=$(saved_step)
  say "on $SLURM_JOB_NODELIST, last checkpoint $before"
}

# The job's first node, for all tasks: a container has no scontrol. By name where that resolves.
export_address() {
  local first line
  [[ -z ${MASTER_ADDR:-} ]] || return 0
  read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  if ! getent hosts "$first" >/dev/null; then
    line=$(scontrol show node "$first")
    [[ $line =~ NodeAddr=([^[:space:]]+) ]] && first=${BASH_REMATCH[1]}
  fi
  export MASTER_ADDR=$first
}

# end_job CODE: requeue a run that stopped and saved; else end with the code of its ranks.
end_job() {
  local code=$1 state after idle=0 line
  state=$(squeue --noheader --jobs="$job" --format=%T 2>/dev/null) || state=unknown
  after=$(saved_step)
  say "srun ended with $code, job $state, last checkpoint $after"
  [[ $code != 0 ]] || exit 0
  # Cancelled, or already being requeued by Slurm: not ours to decide.
  [[ $state == RUNNING ]] || exit "$code"
  if [[ $code == 75 ]]; then
    [[ -f $run/stopped ]] || exit "$code"
  else
    [[ $code != 2 && $SUPMIM_REQUEUE_CRASHED == yes && $after != "$before" ]] || exit "$code"
  fi
  if [[ $after == "$before" ]]; then
    line=$(cat "$run/idle_requeues" 2>/dev/null) || line=0
    [[ $line =~ ^[0-9]{1,4}$ ]] || line=0
    idle=$((10#$line + 1))
  fi
  echo "$idle" >"$run/idle_requeues"
  if ! [ "$idle" -lt "$SUPMIM_IDLE_REQUEUES" ]; then
    say "$idle requeues without a new checkpoint: not requeued"
    exit 1
  fi
  say "requeued"
  scontrol requeue "$job" || exit "$code"
  exec sleep 120 # Slurm ends it
}

# The name of the run's last whole checkpoint.
saved_step() {
  cat "$run/checkpoints/latest" 2>/dev/null || echo none
}

# Ranks that --here starts: a GPU each, or two on the CPU.
gpus_here() {
  local count=0
  ! command -v nvidia-smi >/dev/null || count=$(nvidia-smi --list-gpus | wc -l)
  [[ $count -gt 0 ]] && echo "$count" || echo 2
}
