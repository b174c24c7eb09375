"""Memory of a rank from its parts."""

from dataclasses import replace

import pytest

from supmim_scale.planner.memory import gathered_bytes, memory_of
from supmim_scale.planner.sharding import ModelSize, Sharding
from supmim_scale.planner.trace import Gradient, Trace

SIZE = ModelSize(1000, 100, 800, (500, 400, 90, 10))
STAGE_3 = Sharding(
    stage=3, precision="bf16", reduce_bucket=50, overlaps=True, max_live=400, prefetch=0,
    persistence=10, offloads_optimizer=False, offloads_parameters=False, second_shard=1,
    quantized_weights=False, quantized_gradients=False,
)  # fmt: skip
TRACE = Trace(
    saved=5000, logits=100, forward_peak=5100, outer_peak=5200,
    block_peaks=(2900, 100), done=(0.5, 1.0),
    outer=(Gradient(90, 5200, 5000), Gradient(500, 4500, 4000), Gradient(0, 4100, 4000)),
    block_lives=(2800, 90),
)  # fmt: skip


def memory(sharding, ranks=4, accumulation=1):
    return memory_of(SIZE, sharding, ranks, TRACE, accumulation, has_ema=True, inputs=7.0)


def test_stage_3_gathers_what_may_live_or_the_largest_tensor_and_keeps_small_ones():
    assert gathered_bytes(SIZE, STAGE_3, 4) == (2 * (500 + 10), 2 * (500 + 10))
    assert gathered_bytes(SIZE, replace(STAGE_3, max_live=600), 4)[1] == 2 * (600 + 10)
    assert gathered_bytes(SIZE, STAGE_3, 1) == (0, 0)


def test_a_prefetch_has_a_buffer_of_its_own_until_the_model_stays_whole():
    fetching = replace(STAGE_3, prefetch=200)
    assert gathered_bytes(SIZE, fetching, 4) == (2 * (510 + 200), 2 * (510 + 200))
    whole = replace(fetching, max_live=10_000, prefetch=10_000)
    assert gathered_bytes(SIZE, whole, 4) == (2 * (1000 + 990), 2 * 1000)


def test_hpz_adds_a_second_shard_of_the_weights():
    with_hpz = replace(STAGE_3, second_shard=8)
    pairs = zip(gathered_bytes(SIZE, with_hpz, 64), gathered_bytes(SIZE, STAGE_3, 64), strict=True)
    assert [a - b for a, b in pairs] == [2 * 1000 / 8] * 2


def test_offloaded_states_leave_the_gpu_for_the_host():
    here = memory(STAGE_3)
    there = memory(replace(STAGE_3, offloads_optimizer=True, offloads_parameters=True))
    assert there.masters == there.optimizer == there.gradients == there.ema == 0
    assert there.host == (2 + 4 + 4 + 8 + 4) * 1000 / 4
    assert here.peak - there.peak == pytest.approx(there.host)


def test_stage_2_has_no_gradients_before_its_first_reduction():
    stage_2 = replace(STAGE_3, stage=2, reduce_bucket=2000)
    once, again = memory(stage_2), memory(stage_2, accumulation=2)
    assert once.gradients == 0
    assert again.gradients == 4 * 1000 / 4
    assert again.peak - once.peak == again.gradients


def test_a_gradient_larger_than_the_bucket_waits_for_the_next_one_and_is_cast_by_itself():
    stage_2 = replace(STAGE_3, stage=2, reduce_bucket=300, overlaps=False)
    outer = (Gradient(800, 90, 90), Gradient(200, 90, 80), Gradient(0, 90, 80))
    trace = Trace(50, 0, 60, 90, (90,), (1.0,), outer, (10,))
    size = ModelSize(1000, 200, 200, (200, 800))
    found = memory_of(size, stage_2, 2, trace, 1, has_ema=False, inputs=0.0)
    # The second rank owns 500 of the head's 800 values; both parts are flattened together.
    assert found.gradients == 4 * 500 + 2 * 800
    assert found.buckets == 2 * 300 + 2 * 800 + 4 * 500


def test_more_ranks_never_need_more_memory_each():
    peaks = [memory(STAGE_3, ranks).peak for ranks in (2, 4, 64, 1024)]
    assert peaks == sorted(peaks, reverse=True)


def test_kinds_sum_to_the_peak():
    found = memory(STAGE_3)
    assert found.peak == pytest.approx(sum(found.by_kind().values()))
    assert found.peak >= found.at_step
