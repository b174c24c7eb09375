"""Profiles: what binds, and that they stay out of the throughput."""

import gzip
import json

import pytest
import torch
from conftest import SMALL, command

from supmim_scale.config import load_config
from supmim_scale.errors import UserError
from supmim_scale.training.meters import StepClock
from supmim_scale.training.profile import (
    Kernel,
    Profile,
    StepProfiler,
    family_of,
    profiled_from,
    read_profile,
    timed,
)

KERNELS = (Kernel("aten::addmm", 4, 0.5), Kernel("aten::add", 8, 0.1))


def profile(**changed):
    usual = {
        "steps": 2,
        "wall_s": 1.0,
        "waited_s": 0.0,
        "busy_s": 0.9,
        "communication_s": 0.1,
        "exposed_s": 0.0,
        "kernels": KERNELS,
        "attention": (),
    }
    return Profile(**usual | changed)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, "compute binds: 90% of a step of 0.500 s, most of it matrix products (83%)"),
        ({"waited_s": 0.6, "busy_s": 0.3}, "data wait binds: 60%"),
        ({"exposed_s": 0.7}, "communication binds: 70%"),
        ({"busy_s": 0.2}, "host launches binds: 80%"),
    ],
)
def test_one_line_says_what_binds(changed, words):
    assert profile(**changed).line.startswith(words)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("ncclDevKernel_AllGather_RING_LL", "communication"),
        ("gloo:all_reduce", "communication"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits>", "attention"),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_TNT", "matrix products"),
        ("aten::mm", "matrix products"),
        ("aten::native_layer_norm", "norms"),
        ("aten::gelu", "element-wise and others"),
    ],
)
def test_kernels_have_families(name, family):
    assert family_of(name) == family


def test_the_attention_that_ran_is_named():
    q_BAND = torch.randn(1, 2, 8, 16, requires_grad=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    profiler, wall_s = timed(lambda: attend(q_BAND, q_BAND, q_BAND).sum().backward())
    found = read_profile(profiler, 1, wall_s, 0.0)
    assert all(name.startswith("aten::_scaled_dot_product") for name in found.attention)
    assert len(found.attention) == 2
    assert 0 < found.busy_s <= found.wall_s
    assert found.communication_s == 0


def test_profiled_steps_are_left_out_of_the_clock(tmp_path):
    clock, profiler = StepClock(global_batch=4), StepProfiler(tmp_path, start=1, steps=2)
    found = []
    for steps_done in range(1, 5):
        clock.waited(0.25)
        clock.step_done()
        found.append(profiler.step(steps_done, clock))
    assert [profile is None for profile in found] == [True, True, False, True]
    figures = clock.read(0)
    # Steps 2 and 3 are gone, with what they waited: two are left.
    assert figures["data_wait"] * figures["step_time_s"] == pytest.approx(0.25)
    assert (tmp_path / "kernels.md").exists()


def test_a_timed_step_is_not_a_processs_first_profiled_one():
    ran = []
    profiler, wall_s = timed(lambda: ran.append(torch.ones(3).add_(1)))
    (calls,) = (e.count for e in profiler.key_averages() if e.key == "aten::add_")
    assert (len(ran), calls) == (2, 1)
    assert wall_s > 0


def test_a_run_is_profiled_at_its_first_log_line_or_as_early_as_it_can():
    assert profiled_from(0, 100, every=20, steps=3) == 20
    assert profiled_from(30, 100, every=20, steps=3) == 40
    assert profiled_from(0, 10, every=20, steps=3) == 1
    assert profiled_from(0, 4, every=20, steps=3) is None


def test_no_log_line_lies_within_a_profile():
    for every in (5, 8):
        for begun in range(30):
            for num_steps in range(begun + 1, 40):
                start = profiled_from(begun, num_steps, every, 3)
                lines = set(range(0, num_steps, every)) | {num_steps}
                assert start is None or not lines & {start + 1, start + 2, start + 3}


def test_a_profiled_run_says_what_binds(shards, tmp_path):
    steps = [*SMALL, f"input.root={shards}", "engine.kind=plain", "log.every=3", "optim.steps=5"]
    own = ["log.profile=true", "log.profile_steps=1", f"log.run_dir={tmp_path}/run"]
    command("train", "smoke", *steps, *own)
    lines = (tmp_path / "run/log.jsonl").read_text().splitlines()
    (told,) = (row for row in map(json.loads, lines) if row["kind"] == "profile")
    assert " binds: " in told["binds"]
    with gzip.open(tmp_path / "run/profile/trace.json.gz") as trace:
        names = {event.get("name") for event in json.load(trace)["traceEvents"]}
    assert "aten::addmm" in names
    assert "| kernel | family |" in (tmp_path / "run/profile/kernels.md").read_text()


def test_profiled_steps_must_lie_between_two_log_lines():
    with pytest.raises(UserError, match=r"log\.profile_steps: found 19 with log\.every 20"):
        load_config("smoke", ["log.profile=true", "log.profile_steps=19"])
