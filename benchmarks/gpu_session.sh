#!/usr/bin/env bash
# Everything that wants a GPU, most important first, each piece under nine minutes:
#
#   bash benchmarks/gpu_session.sh [OUT_FOLDER]
#
# Rows are appended as they are measured, so a session that is cut off keeps what it has.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-benchmarks/results}
python=${SUPMIM_PYTHON:-.venv/bin/python}
[[ -x $python ]] || python=$(command -v python3)
device=$("$python" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "_"))' 2>/dev/null) || {
  echo "error: no CUDA device; nothing was run" >&2
  exit 2
}
mkdir -p "$out"

"$python" benchmarks/throughput.py --models vit_l16 --stages 3 --policies none full selective \
  --precision bf16 --out "$out/throughput_$device.jsonl"
[[ -d datasets/smoke ]] || "$python" -m supmim_scale data synth datasets/smoke
run=runs/gpu_session_$(date +%Y%m%d_%H%M%S)
"$python" -m supmim_scale train smoke log.run_dir="$run"
cp "$run/run.json" "$out/smoke_${device}_run.json"
cp "$run/log.jsonl" "$out/smoke_${device}_log.jsonl"
"$python" benchmarks/dataloader.py --kinds loader feeds stage --cores "$(nproc)" --repeats 3 \
  --out "$out/dataloader_$device.jsonl"
"$python" benchmarks/memory.py --models vit_l16 --reduce-bucket 500000000 \
  --out "$out/memory_$device.jsonl"
"$python" -m pytest -n 0 -m gpu
"$python" benchmarks/throughput.py --models vit_l16 --stages 1 --policies none full selective \
  --precision bf16 --out "$out/throughput_$device.jsonl"
