# What all templates share, around the one srun of each; sourced after site.sh.
#
# Values are compared with [ ], never inside (( )) or with -lt inside [[ ]]: those evaluate what
# a variable holds, and with it any command substitution in it.
# shellcheck shell=bash disable=SC2034,SC2154 # templates read what is set here, site.sh sets the rest

script=$0 job='' run='' code=0 command=()
# Ranks are dealt out in blocks, a node after the other.
srun_options=(--kill-on-bad-exit=1 --cpu-bind=cores --distribution=block "${site_srun_options[@]}")
# Only the batch script that Slurm itself started is a job: not a shell inside some other job.
if [[ ${SLURM_TASK_PID:-} == "$$" ]]; then
  job=$SLURM_JOB_ID
  # An element's own id may be that of its whole array.
  [[ -z ${SLURM_ARRAY_TASK_ID:-} ]] || job=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}
fi

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
  local recipe=$1 words=(input.root="$2") own=() word mode=
  shift 2
  case ${1:-} in --here | --words) mode=$1 && shift ;; esac
  if [[ $# -gt 0 && $1 != *=* && $1 != -* ]]; then
    [[ $1 == "$recipe" ]] || words=()
    recipe=$1
    shift
  fi
  run=$SUPMIM_RUNS/$(basename "$script" .sh)_$(date +%Y%m%d_%H%M%S)
  [[ -z $job ]] || run=$SUPMIM_RUNS/${SLURM_JOB_NAME}_$job
  words+=(log.run_dir="$run")
  for word in "$@"; do # a key of the user's stands in place of the template's
    [[ $word != input.root=* ]] || words=("${words[@]/#input.root=*/}")
    [[ $word != log.run_dir=* ]] || { words=("${words[@]/#log.run_dir=*/}") && run=${word#*=}; }
  done
  for word in "${words[@]}"; do
    [[ -z $word ]] || own+=("$word")
  done
  words=("$recipe" "${own[@]}" "$@")
  [[ $mode != --words ]] || { printf '%s\n' "${words[@]}" && exit; }
  command=("$SUPMIM_PYTHON" -m supmim_scale train "${words[@]}")
  [[ $mode != --here ]] || exec "${command[@]}" --ranks "$(gpus_here)"
  begin_job
  begin_run
}

# study_job MANIFEST: the run of this array element, a line of the manifest.
study_job() {
  local manifest=${1:-} words=() fix="start with: supmim-scale study submit STUDY.yaml"
  if [[ $manifest == --here ]]; then
    exec "$SUPMIM_PYTHON" -m supmim_scale study run --ranks "$(gpus_here)" "${@:2}"
  fi
  command=("$SUPMIM_PYTHON" -m supmim_scale train 'RECIPE AND OVERRIDES OF A LINE OF THE MANIFEST')
  begin_job
  [[ -r $manifest ]] || fail "$script: found no file '$manifest'; expected a study's manifest.tsv; $fix"
  [[ ${SLURM_ARRAY_TASK_ID:-} =~ ^[0-9]+$ ]] || fail "$script: found no array; expected one; $fix"
  IFS=$'\t' read -r -a words < <(sed -n "$((10#$SLURM_ARRAY_TASK_ID + 1))p" "$manifest") || true
  [[ ${#words[@]} -gt 1 ]] || fail "$manifest: found no line for element $SLURM_ARRAY_TASK_ID; expected one a run; $fix"
  run=$(dirname "$manifest")/${words[0]}
  command=("$SUPMIM_PYTHON" -m supmim_scale train "${words[@]:1}" log.run_dir="$run")
  begin_run
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
  [ "$SUPMIM_IDLE_STARTS" -gt 0 ] 2>/dev/null ||
    fail "SUPMIM_IDLE_STARTS: found '$SUPMIM_IDLE_STARTS'; expected a whole number above 0; set it in slurm/site.sh"
  [[ $SUPMIM_REQUEUE_CRASHED =~ ^(yes|no)$ ]] ||
    fail "SUPMIM_REQUEUE_CRASHED: found '$SUPMIM_REQUEUE_CRASHED'; expected yes or no; set it in slurm/site.sh"
  [[ ${#site_srun_options[@]} -gt 0 || -x $SUPMIM_PYTHON ]] ||
    fail "SUPMIM_PYTHON: found no program $SUPMIM_PYTHON; expected a Python with supmim_scale; set it in slurm/site.sh"
  # sbatch sets the first, srun since 22.05 reads the second.
  export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} PYTHONUNBUFFERED=1
  trap : TERM USR1 # the ranks get them too and save; this shell looks at what they left
  say "on $SLURM_JOB_NODELIST"
}

# What a run also needs: an address to meet at, and a note of this start in its folder.
begin_run() {
  local last='' idle=0 problem log
  export_address
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}
  before=$(saved_step)
  if [[ ${SLURM_RESTART_COUNT:-0} != 0 && -f $run/starts ]]; then
    read -r last idle <"$run/starts" || true
    [[ $idle =~ ^[0-9]{1,4}$ ]] || idle=0
    if [[ $last == "$before" ]]; then idle=$((10#$idle + 1)); else idle=0; fi
  fi
  log=$(scontrol show job "$job" | sed -n 's/^ *StdOut=//p') || log='' # jobs shows no reason then
  problem=$({
    mkdir -p "$run" && rm -f "$run/stopped" "$run/mistake" &&
      echo "$before $idle" >"$run/starts" && printf '%s\t%s\n' "$job" "$log" >>"$run/jobs.tsv"
  } 2>&1) || fail "log.run_dir: found $problem; expected a writable folder; set log.run_dir=FOLDER"
  export SUPMIM_MISTAKE=$run/mistake
  say "run $run, last checkpoint $before"
  if ! [ "$idle" -lt "$SUPMIM_IDLE_STARTS" ]; then
    say "$idle starts without a new checkpoint: not started again"
    exit 1
  fi
}

# The job's first node, for all tasks, for a container has no scontrol: by name where that
# resolves, else the address that Slurm itself uses. Nothing is inherited from the submitting shell.
export_address() {
  local first='' line
  unset RANK WORLD_SIZE LOCAL_RANK MASTER_PORT
  read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST") ||
    fail "scontrol show hostnames: found nothing; expected the nodes $SLURM_JOB_NODELIST; look at scontrol ping"
  if ! getent hosts "$first" >/dev/null; then
    line=$(scontrol show node "$first") || line=''
    [[ ! $line =~ NodeAddr=([^[:space:]]+) ]] || first=${BASH_REMATCH[1]}
  fi
  export MASTER_ADDR=${SUPMIM_MASTER_ADDR:-$first}
}

# end_job CODE: requeue a run that stopped and saved; else end with the code of its ranks.
#
# srun's code is its highest task's, so that it alone proves nothing: the run's folder says whether
# it stopped in order (stopped) or met a mistake of the user's (mistake).
end_job() {
  local code=$1 after state
  [[ $code != 0 ]] || { say "done" && exit 0; }
  [[ -n $run ]] || { say "ended with $code" && exit "$code"; }
  [[ ! -f $run/mistake ]] || code=2
  after=$(saved_step)
  say "srun ended with $code, last checkpoint $after"
  if [[ ! -f $run/stopped ]]; then
    [[ $code != 2 ]] || { say "not requeued: a mistake, see the line above" && exit 2; }
    [[ $SUPMIM_REQUEUE_CRASHED == yes ]] ||
      { say "not requeued: the run did not stop in order (SUPMIM_REQUEUE_CRASHED=no)" && exit "$code"; }
    [[ $after != "$before" ]] || { say "not requeued: crashed before a checkpoint" && exit "$code"; }
  fi
  # Cancelled, or already being requeued by Slurm: not ours to decide.
  state=$(patiently squeue --noheader --jobs="$job" --format=%T) || state=unknown
  [[ $state == RUNNING ]] || { say "not requeued here: the job is ${state:-gone}" && exit "$code"; }
  patiently scontrol requeue "$job" || { say "not requeued: Slurm refused" && exit "$code"; }
  say "requeued"
  sleep 120 & # Slurm ends this script
  wait $! || true
  exit "$code"
}

# A command of Slurm's, tried for two minutes: its controller may be busy.
patiently() {
  local try
  for try in 1 2 3 4 5 6 7 8; do
    if timeout 30 env -u SQUEUE_STATES -u SQUEUE_PARTITION -u SQUEUE_USERS "$@"; then return 0; fi
    [[ $try == 8 ]] || sleep "${SUPMIM_RETRY_S:-15}"
  done
  return 1
}

# The name of the run's last whole checkpoint.
saved_step() {
  cat "$run/checkpoints/latest" 2>/dev/null || echo none
}

# Ranks that --here starts: a GPU each, or two on the CPU.
gpus_here() {
  local count=0
  ! command -v nvidia-smi >/dev/null || count=$(nvidia-smi --list-gpus | wc -l)
  if [ "$count" -gt 0 ]; then echo "$count"; else echo 2; fi
}
