"""The arithmetic of the benchmarks, and what they refuse."""

import importlib
import json
import sys

import pytest
import torch

from supmim_scale.build.model import encoder_geometry
from supmim_scale.launch.world import World

ALONE = World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"), launcher="none")
JOB = {
    "model": "vit_ti16,depth=2,width=64,heads=2",
    "layout": "clean_and_masked",
    "stage": None,
    "policy": "none",
    "precision": "fp32",
    "micro_batch": 2,
    "ranks": 1,
    "image_size": 32,
    "overrides": [],
}


@pytest.fixture
def refused(monkeypatch, capsys):
    """The one line that a benchmark ends with, before any rank has started."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        assert importlib.import_module(f"benchmarks.{name}").main() == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


def losses(step, count=3):
    return [float(step.run()) for _ in range(count)]


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("by_hand", "clean_and_masked"),
        ("two_forwards", "clean_and_masked_tokens"),
        ("timm", "classification"),
    ],
)
def test_a_step_written_by_hand_learns_what_ours_does(name, layout):
    from benchmarks.speed.baselines import BASELINES, baseline_step
    from benchmarks.speed.steps import our_step, recipe_of

    config = recipe_of({**JOB, "layout": layout})
    theirs = baseline_step(name, config, ALONE)
    assert BASELINES[name][0] == layout
    assert losses(theirs) == pytest.approx(losses(our_step(config, ALONE)), rel=1e-5)


def test_the_flops_by_hand_are_ours_and_two_forwards_embed_twice():
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.speed.baselines import baseline_step
    from benchmarks.speed.steps import our_step, recipe_of

    config = recipe_of(JOB)
    ours, hand, twice = (
        our_step(config, ALONE),
        *(baseline_step(name, config, ALONE) for name in ("by_hand", "two_forwards")),
    )
    assert hand.flops == ours.flops
    counted = []
    for step in (ours, hand, twice):
        with FlopCounterMode(display=False) as counter:
            step.forward_backward()
        counted.append(counter.get_total_flops() / step.images)  # on a CPU without attention
    assert counted[0] == counted[1]
    tokens = recipe_of({**JOB, "layout": "clean_and_masked_tokens"})
    with FlopCounterMode(display=False) as counter:
        whole = our_step(tokens, ALONE)
        whole.forward_backward()
    shape = encoder_geometry(config)
    embedding = 2 * shape.num_patches * shape.width * 3 * shape.patch_size**2
    assert counted[2] == counter.get_total_flops() / whole.images + 2 * embedding


def test_a_fed_step_learns_from_the_samples_and_says_what_it_waited(shards):
    from benchmarks.speed.measuring import time_steps
    from benchmarks.speed.steps import our_step, recipe_of

    fixed = our_step(recipe_of(JOB), ALONE)
    fed = our_step(recipe_of({**JOB, "data": str(shards)}), ALONE, is_fed=True)
    rows = [time_steps(step, ALONE, 1, 3) for step in (fixed, fed)]
    assert rows[0]["data_wait_s"] is None
    assert "--data" in rows[0]["data_wait_reason"]
    assert 0 < rows[1]["data_wait_s"] < rows[1]["step_time_median_s"]
    assert rows[1]["data_wait_reason"] is None
    assert rows[1]["step_time_median_s"] >= rows[1]["data_wait_s"] + rows[1]["forward_s"]
    again = our_step(recipe_of({**JOB, "data": str(shards)}), ALONE, is_fed=True)
    assert losses(again, 4)[-1] == pytest.approx(rows[1]["loss"], rel=1e-6)
    assert rows[0]["loss"] != pytest.approx(rows[1]["loss"], rel=1e-3)


def test_the_interval_of_a_median_holds_as_much_as_it_says():
    from benchmarks.speed.paired import median_interval

    # Of 12 values the third and the tenth hold the median with 96.1 % (tables of order statistics).
    assert median_interval(list(range(12))) == (2, 9)
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


@pytest.mark.parametrize(
    ("kind", "bound", "word"),
    [
        ("time", 1.05, "PASS"),
        ("time", 0.95, "FAIL"),
        ("speed", 1.05, "FAIL"),
        ("speed", 0.9, "PASS"),
    ],
)
def test_a_ratio_is_held_against_its_bound(kind, bound, word):
    from benchmarks.speed.paired import verdict

    row = verdict([0.99, 1.0, 1.01], bound, kind)
    assert (row["verdict"], row["is_clear"]) == (word, True)
    assert verdict([1.0, 1.0, 1.0], None, kind)["verdict"] is None


def test_pairs_take_turns_and_who_begins_changes():
    from benchmarks.speed.paired import take_turns

    order = []

    class Told:
        def __init__(self, name):
            self.run = lambda: order.append(name)

    take_turns(Told("a"), Told("b"), 4, 1, torch.device("cpu"))
    assert "".join(order) == "abbaabba"


@pytest.mark.parametrize("limit", [0, 1, 5, 8, 100, 1000])
def test_the_largest_batch_is_found(limit):
    from benchmarks.speed.probing import GRAIN, search

    found = search(lambda images: images <= limit, 512)
    assert found <= min(limit, 512)
    assert found == min(limit, 512) // (GRAIN if limit >= GRAIN else 1) * (
        GRAIN if limit >= GRAIN else 1
    )


def test_a_page_keeps_what_stands_around_its_rows():
    from benchmarks.rows.pages import between_markers

    page = between_markers("# Mine\n", "first")
    page = between_markers(page + "after\n", "second")
    assert page.startswith("# Mine\n")
    assert page.endswith("after\n")
    assert "second" in page
    assert "first" not in page


def test_rows_vary_in_what_must_not_change_the_result():
    from benchmarks.speed.steps import require_varied

    found = require_varied(["engine.checkpoint_every_k=2,3", "input.threads=1"])
    assert found == [
        ["engine.checkpoint_every_k=2", "input.threads=1"],
        ["engine.checkpoint_every_k=3", "input.threads=1"],
    ]


@pytest.mark.parametrize(
    ("name", "arguments", "word"),
    [
        ("throughput", ("--vary", "optim.lr=1,2"), "--vary: found 'optim.lr=1,2'"),
        ("throughput", ("--vary", "engine.warp=9"), "engine.warp"),
        ("throughput", ("--data", "x", "--baselines", "timm"), "--data: found --baselines timm"),
        ("throughput", ("--data", "x", "--paired"), "--paired: found --data x"),
        ("throughput", ("--data", "nowhere"), "--data: found no folder nowhere"),
        ("memory", ("--models", "vit_q99"), "model.name: found 'vit_q99'"),
        ("throughput_report", ("nowhere.jsonl",), "nowhere.jsonl: found no file"),
        ("memory_report", ("nowhere.jsonl",), "nowhere.jsonl: found no file"),
    ],
)
def test_a_benchmark_refuses_what_it_cannot_run(refused, name, arguments, word):
    assert word in refused(name, *arguments)


def test_a_pair_in_one_process_says_pass_or_fail(tmp_path):
    from benchmarks.speed.paired import measure_pair
    from benchmarks.speed.report import figure, markdown

    job = {**JOB, "pair": "by_hand", "warmup": 2, "rounds": 2, "steps": 1}
    row = measure_pair(job, ALONE)
    assert row["verdict"] in ("PASS", "FAIL")
    assert row["losses"][0] == pytest.approx(row["losses"][1], rel=1e-5)
    assert any("scaled_dot_product" in name for name in row["attention"])
    page = markdown([json.loads(json.dumps(row | {"device": "x", "device_count": 0}))])
    assert "not run: no GPU" in page
    assert row["verdict"] in page
    figure([row]).savefig(tmp_path / "picture.png")


@pytest.mark.parametrize("pair", ["joined", "fused", "attention", "selective", "first_k"])
def test_a_part_of_the_step_learns_what_the_step_without_it_does(pair):
    from benchmarks.speed.paired import measure_pair

    row = measure_pair({**JOB, "pair": pair, "warmup": 2, "rounds": 1, "steps": 1}, ALONE)
    assert row["loss_gap"] < 1e-5
    assert "/" not in row["first"] + row["second"]  # rows are shown to others


def test_changes_are_those_that_the_device_can_show():
    from benchmarks.speed.pairs import CHANGES, changes, usual_pairs

    assert set(changes(is_gpu=True)) | set(changes(is_gpu=False)) == set(CHANGES)
    assert "fp8" not in changes(is_gpu=False)
    assert not set(usual_pairs(is_gpu=False)) & set(CHANGES)


def test_the_shapes_of_a_model_hold_its_flops():
    from benchmarks.speed.shapes import _call, shapes_of
    from benchmarks.speed.steps import our_flops, recipe_of

    config = recipe_of(JOB)
    found = shapes_of(config, 2)
    flops = sum(
        _call(kind, sizes, torch.float32, ALONE.device)[1] * count
        for (kind, sizes), count in found.items()
    )
    embedding = 2 * 4 * 64 * 3 * 16**2  # patches x width x values: a convolution, no product
    assert flops == 2 * (our_flops(config, JOB["micro_batch"]).model - 2 * embedding)


@pytest.mark.parametrize(
    ("told", "code", "reason"),
    [
        (("1980, 2619, 512.3, 700.00, 41\n", ""), 0, None),
        (("1980, 2619, [N/A], 700.00, 41\n", ""), 0, "nvidia-smi says [N/A] of power_w"),
        (("1980\n", ""), 0, "nvidia-smi says nothing of memory_clock_mhz, nothing of power_w"),
        (("", "Failed to initialize NVML\nmore\n"), 9, "nvidia-smi: Failed to initialize NVML"),
        (("No devices were found\n", ""), 6, "nvidia-smi: No devices were found"),
        (("", ""), 12, "nvidia-smi: exit code 12"),
    ],
    ids=["all", "one not available", "cut short", "an error", "an answer on stdout", "silent"],
)
def test_a_column_of_nvidia_smi_without_a_value_has_its_reason(told, code, reason):
    measuring = importlib.import_module("benchmarks.speed.measuring")
    row = measuring.gpu_columns(told, code)
    assert set(row) == {*measuring._GPU_COLUMNS.values(), "power_reason"}
    told_reason = row.pop("power_reason")
    assert (told_reason or "").startswith(reason or "")
    assert (told_reason is None) == (None not in row.values())
    assert code or row["sm_clock_mhz"] == 1980
