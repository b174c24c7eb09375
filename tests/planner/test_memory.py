"""Memory of a rank from its parts."""

from dataclasses import replace

import pytest

from supmim_scale.planner.memory import gathered_bytes, memory_of
from supmim_scale.planner.sharding import ModelSize, Sharding
from supmim_scale.planner.trace import Trace

SIZE = ModelSize(1000, 100, 800, (500, 400, 90, 10))
STAGE_3 = Sharding(
    stage=3, precision="bf16", reduce_bucket=50, overlaps=True, max_live=400, persistence=10,
    offloads_optimizer=False, offloads_parameters=False, second_shard=1,
    quantized_weights=False, quantized_gradients=False,
)  # fmt: skip
TRACE = Trace(
    saved=5000, logits=100, forward_peak=5100, outer_peak=5200,
    block_peaks=(2900, 100), done=(0.5, 1.0),
)  # fmt: skip


def memory(sharding, ranks=4, accumulation=1):
    return memory_of(SIZE, sharding, ranks, TRACE, accumulation, has_ema=True, inputs=7.0)


def test_stage_3_gathers_what_may_live_or_the_largest_tensor_and_keeps_small_ones():
    assert gathered_bytes(SIZE, STAGE_3, 4) == 2 * (500 + 10)
    assert gathered_bytes(SIZE, replace(STAGE_3, max_live=600), 4) == 2 * (600 + 10)
    assert gathered_bytes(SIZE, STAGE_3, 1) == 0


def test_hpz_adds_a_second_shard_of_the_weights():
    with_hpz = replace(STAGE_3, second_shard=8)
    assert gathered_bytes(SIZE, with_hpz, 64) - gathered_bytes(SIZE, STAGE_3, 64) == 2 * 1000 / 8


def test_offloaded_states_leave_the_gpu_for_the_host():
    here = memory(STAGE_3)
    there = memory(replace(STAGE_3, offloads_optimizer=True, offloads_parameters=True))
    assert there.masters == there.optimizer == there.gradients == there.ema == 0
    assert there.host == (2 + 4 + 4 + 8 + 4) * 1000 / 4
    assert here.peak - there.peak == pytest.approx(there.host)


def test_gradients_that_come_late_do_not_meet_the_first_activations():
    stage_2 = replace(STAGE_3, stage=2)
    once, again = memory(stage_2), memory(stage_2, accumulation=2)
    assert again.gradients == 4 * 1000 / 4
    no_block = 0.2 * again.gradients
    assert once.gradients == pytest.approx(no_block)
    assert once.peak < again.peak


def test_more_ranks_never_need_more_memory_each():
    peaks = [memory(STAGE_3, ranks).peak for ranks in (2, 4, 64, 1024)]
    assert peaks == sorted(peaks, reverse=True)


def test_kinds_sum_to_the_peak():
    found = memory(STAGE_3)
    assert found.peak == pytest.approx(sum(found.by_kind().values()))
    assert found.peak >= found.at_step
