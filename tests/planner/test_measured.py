"""Predicted memory is that of a run: the benchmark, plain in one process and at ZeRO-2 in two."""

import pytest
import torch

from supmim_scale.launch.world import World

ALONE = World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"), launcher="none")


@pytest.fixture
def benchmark(monkeypatch):
    from benchmarks.bytes import memory

    return memory


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts live tensors of the CPU")
@pytest.mark.parametrize(
    ("precision", "layout", "policy"),
    [
        ("bf16", "clean_and_masked", "selective"),
        ("bf16", "masked_only", "full"),
        ("fp32", "clean_and_masked", "none"),
    ],
)
def test_a_plain_run_needs_what_was_predicted(benchmark, precision, layout, policy):
    job = {
        "model": "vit_ti16",
        "layout": layout,
        "stage": 0,
        "policy": policy,
        "image_size": 64,
        "micro_batch": 8,
        "ranks": 1,
        "precision": precision,
        "accumulation": 1,
        "reduce_bucket": 1,
        "ds_config": "zero1",
        "timeline": False,
        "snapshots": ".",
    }
    row = benchmark.describe(job) | benchmark.measure(job, ALONE)
    assert abs(row["peak_error"]) < 0.05
    assert list(row["phases"]) == list(benchmark.PHASES)
    assert "| " + layout in benchmark.table([row])
    assert sum(row["measured_bytes"].values()) == row["measured_peak_bytes"]
    for kind in ("parameters", "optimizer", "inputs"):
        assert row["measured_bytes"][kind] == pytest.approx(row["predicted_bytes"][kind], rel=0.01)
    assert row["measured_bytes"]["activations"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts live tensors of the CPU")
def test_a_head_larger_than_all_blocks_is_predicted_too_and_a_timeline_has_the_peak(benchmark):
    job = {
        "model": "vit_ti16,depth=2,num_classes=21841",
        "layout": "clean_and_masked",
        "stage": 0,
        "policy": "full",
        "image_size": 32,
        "micro_batch": 2,
        "ranks": 1,
        "precision": "fp32",
        "accumulation": 1,
        "reduce_bucket": 1,
        "ds_config": "zero1",
        "timeline": True,
        "snapshots": ".",
    }
    row = benchmark.measure(job, ALONE)
    assert abs(row["peak_error"]) < 0.01
    assert sum(row["measured_bytes"].values()) == row["measured_peak_bytes"]
    tops = [sum(point.values()) - point["operation"] for point in row["timeline"]]
    assert max(tops) == row["measured_peak_bytes"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts live tensors of the CPU")
@pytest.mark.parametrize(
    ("precision", "accumulation", "bucket"),
    [
        pytest.param("bf16", 1, 1_000_000, id="beyond the bucket"),
        pytest.param("bf16", 1, 5_000_000, id="within the bucket", marks=pytest.mark.slow),
        pytest.param("fp32", 2, 1_000_000, id="beyond, fp32, accumulated"),
    ],
)
def test_at_stage_2_a_head_is_predicted_on_either_side_of_the_bucket(
    benchmark, tmp_path, precision, accumulation, bucket
):
    row = benchmark.measured(
        {
            "model": "vit_ti16,depth=4,num_classes=21841",
            "layout": "clean_and_masked",
            "stage": 2,
            "policy": "full",
            "image_size": 64,
            "micro_batch": 8,
            "ranks": 2,
            "precision": precision,
            "accumulation": accumulation,
            "reduce_bucket": bucket,
            "timeline": False,
            "snapshots": str(tmp_path),
            "overrides": [],
        }
    )
    assert "error" not in row, row["error"]
    assert row["fullest_phase"] == "backward"
    assert abs(row["peak_error"]) < 0.05
