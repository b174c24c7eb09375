"""The shell and Python scripts around the package."""

import importlib.util
import json
import subprocess
import sys

import pytest
from conftest import ROOT


def test_the_throughput_benchmark_writes_rows_beside_plain_pytorch(tmp_path):
    out = tmp_path / "rows.jsonl"
    done = subprocess.run(
        [sys.executable, "benchmarks/throughput.py", "--models", "vit_ti16", "--image-size", "32",
         "--micro-batch", "2", "--stages", "3", "--policies", "full", "--steps", "2",
         "--warmup", "1", "--out", out],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    plain, zero = (json.loads(line) for line in out.read_text().splitlines())
    assert (plain["engine"], zero["engine"]) == ("plain", "zero3")
    assert zero["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    assert zero["ratio_to_plain"] == zero["images_per_s"] / plain["images_per_s"]
    assert zero["hardware_flops_per_image"] > zero["train_flops_per_image"]
    assert zero.keys() >= {"step_time_median_s", "step_time_p95_s", "peak_memory_bytes", "digest",
                           "commit", "versions", "device", "steps_warmup"}  # fmt: skip
    assert (zero["mfu"] is None) == bool(zero["mfu_reason"])
    assert "| vit_ti16 | clean_and_masked | zero3 | full | 2 |" in done.stdout


def test_a_row_that_learned_something_else_is_no_measurement():
    spec = importlib.util.spec_from_file_location("throughput", ROOT / "benchmarks/throughput.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    base = {"loss": 5.0, "images_per_s": 10.0, "precision": "fp32"}
    faster = {"loss": 5.1, "images_per_s": 20.0, "precision": "fp32", "ratio_to_plain": None}
    module.compare(faster, base)
    assert "images_per_s" not in faster
    assert "loss" in faster["error"]


def test_ci_and_readme_name_the_same_two_commands():
    readme = (ROOT / "README.md").read_text()
    assert "python3 quickstart.py demo" in readme
    assert "python3 quickstart.py test" in readme
    assert (ROOT / ".ci/run").read_text().rstrip().endswith("exec python3 quickstart.py test")


def test_quickstart_refuses_an_unknown_command():
    done = subprocess.run(
        [sys.executable, "quickstart.py", "dance"], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 2
