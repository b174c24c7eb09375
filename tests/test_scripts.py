"""The shell and Python scripts around the package."""

import importlib.util
import json
import subprocess
import sys

import forked
import pytest
from conftest import ROOT

SHALLOW = "vit_ti16,depth=2,width=64,heads=2"


def test_the_throughput_benchmark_writes_rows_beside_plain_pytorch(tmp_path):
    out = tmp_path / "rows.jsonl"
    done = forked.run(
        [
            "benchmarks/throughput.py",
            "--models",
            SHALLOW,
            "--image-size",
            "32",
            "--micro-batch",
            "2",
            "--stages",
            "3",
            "--policies",
            "full",
            "--steps",
            "2",
            "--warmup",
            "1",
            "--baselines",
            "two_forwards",
            "--out",
            out,
        ]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    plain, zero, twice = (json.loads(line) for line in out.read_text().splitlines())
    assert (plain["engine"], zero["engine"]) == ("plain", "zero3")
    assert zero["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    assert zero["ratio_to_plain"] == zero["images_per_s"] / plain["images_per_s"]
    assert zero["hardware_flops_per_image"] > zero["train_flops_per_image"]
    assert zero.keys() >= {
        "step_time_median_s",
        "step_time_p95_s",
        "peak_memory_bytes",
        "digest",
        "commit",
        "versions",
        "device",
        "steps_warmup",
        "forward_s",
        "backward_s",
        "optimizer_s",
        "communication_s",
        "roof_share",
        "overrides",
        "attention",
        "cpu_clock_mhz",
        "power_w",
    }
    assert zero["communication_s"] > 0
    assert plain["communication_s"] == 0
    assert (twice["engine"], twice["world_size"]) == ("two_forwards", 2)
    assert (zero["mfu"] is None) == bool(zero["mfu_reason"])
    assert f"| {SHALLOW} | clean_and_masked | zero3 | full | 2 | 2 | fp32 |" in done.stdout


def test_a_row_that_learned_something_else_is_no_measurement(monkeypatch):
    module = importlib.import_module("benchmarks.speed.throughput")
    shared = {
        "model": "m",
        "layout": "l",
        "image_size": 32,
        "precision": "fp32",
        "data": None,
        "global_batch": 4,
    }
    base = {**shared, "engine": "plain", "loss": 5.0, "images_per_s": 10.0}
    faster = {**shared, "engine": "zero1", "loss": 5.1, "images_per_s": 20.0}
    module.guard(faster, [base])
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
