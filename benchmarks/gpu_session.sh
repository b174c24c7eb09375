#!/usr/bin/env bash
# Everything that wants a GPU, most important first, each piece under nine minutes:
#
#   bash benchmarks/gpu_session.sh [OUT_FOLDER [PIECE ...]]
#
# Without pieces all are run, in the order below. Rows are appended as they are measured, so a
# session that is cut off keeps what it has, and a piece that fails or takes too long is told and
# passed over. SECONDS_A_PIECE changes the limit.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
pieces=(shapes vit_l14 pairs pairs_compiled stage3 vit_h14 vit_g14 memory compile_l14 compile_h14
        compile_g14 attention fp8 changes more_changes auto fed memory_h14 memory_g14 memory_grid
        smoke dataloader claim tests)
out=${1:-benchmarks/results}
[[ $# -lt 2 ]] || pieces=("${@:2}")
limit=${SECONDS_A_PIECE:-530}
python=${SUPMIM_PYTHON:-.venv/bin/python}
[[ -x $python ]] || python=$(command -v python3)
device=$("$python" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "_"))' 2>/dev/null) || {
  echo "error: no CUDA device; nothing was run" >&2
  exit 2
}
mkdir -p "$out"
rows=$out/throughput_$device.jsonl
photos=datasets/gpu_session_photos
failed=()

# One GPU, bf16, our engines alone beside the plain one whose loss is the reference; each row with
# its trace, which shows what binds: MODEL BATCH [FLAGS...]
mfu() {
  "$python" benchmarks/throughput.py --models "$1" --micro-batch "$2" --ranks 1 --precision bf16 \
    --stages 1 3 --policies none full --baselines --profile "$out/profile_$device" --out "$rows" \
    "${@:3}"
}

compiled() {
  mfu "$@" --vary engine.compile=true engine.attention=fastest
}

memory() {
  "$python" benchmarks/memory.py --models "$1" --stages 1 3 --policies none full selective \
    --layouts clean_and_masked --ranks 1 --micro-batch "$2" --reduce-bucket 500000000 --timeline \
    --out "$out/memory_$device.jsonl"
}

# Before and after in one run, of ViT-L/14 without recomputation: BATCH BASELINE KEY=VALUES...
vary() {
  "$python" benchmarks/throughput.py --models vit_l14 --micro-batch "$1" --ranks 1 \
    --precision bf16 --stages 1 3 --policies none --baselines "$2" --vary "${@:3}" --out "$rows"
}

paired() {
  "$python" benchmarks/throughput.py --precision bf16 --ranks 1 --models vit_l14 --micro-batch 64 \
    --steps 5 --out "$rows" --paired "$@"
}

piece() {
  local models=(vit_l14 vit_h14 vit_g14)
  case $1 in
    # What MFU the models' own products allow: the expectation that the rows are held against.
    shapes) "$python" benchmarks/shapes.py --models "${models[@]}" --precision bf16 --out "$rows" ;;
    vit_l14) mfu vit_l14 128 ;;
    vit_h14) mfu vit_h14 64 ;;
    vit_g14) mfu vit_g14 32 ;;
    pairs) paired timm timm_compiled two_forwards by_hand classification ;;
    stage3) paired stage3 ;;
    pairs_compiled)
      paired timm timm_compiled two_forwards --vary engine.compile=true engine.attention=fastest
      ;;
    memory) memory vit_l14 64 ;;
    memory_h14) memory vit_h14 32 ;;
    memory_g14) memory vit_g14 16 ;;
    memory_grid) "$python" benchmarks/memory.py --grid --out "$out/memory_$device.jsonl" ;;
    compile_l14) compiled vit_l14 128 ;;
    compile_h14) compiled vit_h14 64 ;;
    compile_g14) compiled vit_g14 32 ;;
    attention) vary 128 timm engine.attention=torch,flash,cudnn,efficient,fastest ;;
    fp8) vary 128 timm_compiled engine.compile=true engine.fp8=none,linears ;;
    # With and without each part of the step, in pairs.
    changes) paired joined dropped fused kept_drop_path attention masters tiles ;;
    more_changes) paired compile selective first_k knobs fp8 ;;
    auto)
      "$python" benchmarks/throughput.py --models vit_l14 --micro-batch auto --ranks 1 \
        --precision bf16 --stages 1 3 --policies none full --baselines --out "$rows"
      ;;
    fed) # the same step on JPEGs that DALI decodes: what it waits for them
      [[ -d $photos ]] || "$python" -m supmim_scale data synth "$photos" \
        --size 500x375 --train 4096 --val 64 --workers "$(nproc)" || return
      "$python" benchmarks/throughput.py --models vit_l14 --micro-batch 128 --ranks 1 \
        --precision bf16 --stages 1 --policies none --data "$photos" --steps 30 --out "$rows"
      ;;
    smoke)
      local run
      run=runs/gpu_session_$(date +%Y%m%d_%H%M%S)
      [[ -d datasets/smoke ]] || "$python" -m supmim_scale data synth datasets/smoke
      "$python" -m supmim_scale train smoke log.run_dir="$run" log.profile=true || return
      cp "$run/run.json" "$out/smoke_${device}_run.json"
      cp "$run/log.jsonl" "$out/smoke_${device}_log.jsonl"
      ;;
    dataloader)
      "$python" benchmarks/dataloader.py --kinds loader feeds stage --cores "$(nproc)" --repeats 3 \
        --out "$out/dataloader_$device.jsonl"
      ;;
    claim_full) # not among the usual: hours, SECONDS_A_PIECE=100000; rows are kept as they come
      "$python" benchmarks/paper_claim.py --ablations --work runs/paper_claim \
        --out "$out/paper_claim_$device.jsonl"
      ;;
    claim) # the paper's claim, its middle version; rows that are there are not run again
      [[ -n ${CIFAR10:-} ]] || {
        echo "not run: set CIFAR10 to the folder of train.npz and test.npz"
        return
      }
      "$python" benchmarks/paper_claim.py --middle --lrs 1e-3 2e-3 --work runs/paper_claim \
        --out "$out/paper_claim_$device.jsonl"
      ;;
    tests) "$python" -m pytest -n 0 -m gpu ;;
    *)
      echo "error: no piece $1; choose from $all" >&2
      return 2
      ;;
  esac
}

export -f piece mfu compiled memory vary paired
all="${pieces[*]}"
export python out rows device photos all
for name in "${pieces[@]}"; do
  echo "== $name, $(date +%T) =="
  # shellcheck disable=SC2016 # expanded by the inner shell
  timeout "$limit" bash -c 'piece "$1"' _ "$name" || failed+=("$name ($?)")
done
[[ ! -f $rows ]] || "$python" benchmarks/throughput_report.py "$rows"
[[ ! -f $out/memory_$device.jsonl ]] || "$python" benchmarks/memory_report.py "$out/memory_$device.jsonl"
[[ ${#failed[@]} -eq 0 ]] || {
  echo "failed, or cut off after $limit s (124): ${failed[*]}"
  exit 1
}
