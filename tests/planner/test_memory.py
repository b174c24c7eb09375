"""Memory of a rank from its parts."""

from dataclasses import replace

import pytest

from supmim_scale.planner.memory import gathered_bytes, memory_of
from supmim_scale.planner.sharding import ModelSize, Sharding
from supmim_scale.planner.trace import Gradient, Trace

SIZE = ModelSize(1000, 100, 800, (500, 400, 90, 10))
STAGE_3 = Sharding(
    stage=3,
    precision="bf16",
    reduce_bucket=50,
    overlaps=True,
    max_live=400,
    prefetch=0,
    persistence=10,
    offloads_optimizer=False,
    offloads_parameters=False,
    second_shard=1,
    quantized_weights=False,
    quantized_gradients=False,
)
TRACE = Trace(
    saved=5000,
    logits=100,
    forward_peak=5100,
    outer_peak=5200,
    block_peaks=(2900, 100),
    done=(0.5, 1.0),
    outer=(Gradient(90, 5200, 5000), Gradient(500, 4500, 4000), Gradient(0, 4100, 4000)),
    block_lives=(2800, 90),
)


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


def test_every_kind_of_stage_3_is_what_it_is_by_hand():
    """1000 parameters on 4 ranks in bf16 and accumulated fp32; a bucket of 50 and its flat copy."""
    found = memory(STAGE_3)
    assert found.parameters == 2 * 250
    assert found.masters == found.gradients == found.ema == 4 * 250
    assert found.optimizer == 8 * 250
    assert found.gathered == 2 * (500 + 10)
    assert found.buckets == 2 * 50 + 2 * 50
    assert (found.activations, found.logits, found.inputs, found.host) == (5200 - 100, 100, 7, 0)
    # The update's own copy of the shard's gradient, in fp32, and the bucket that stays.
    assert found.at_step == (2 + 4 + 4 + 8 + 4) * 250 + 7 + 2 * 50 + 4 * 250
    without = memory_of(SIZE, STAGE_3, 4, TRACE, 1, has_ema=False, inputs=7.0)
    assert found.peak - without.peak == 4 * 250
    assert without.ema == 0


def test_a_flat_copy_is_no_larger_than_the_model():
    large = memory(replace(STAGE_3, reduce_bucket=3000))
    assert large.buckets == 2 * 3000 + 2 * 1000
    assert memory(replace(STAGE_3, reduce_bucket=3000, precision="fp32")).buckets == 4 * 4000


def test_stage_1_in_bf16_gets_its_fp32_accumulators_while_backward_runs():
    """Four bytes of six are there before, the other two fill; a second micro-batch finds all."""
    stage_1 = replace(STAGE_3, stage=1)
    once, again = memory(stage_1), memory(stage_1, accumulation=2)
    # At the fullest moment the gradients before the encoder's blocks, a fifth, are whole.
    assert (once.activations + once.logits, once.gradients) == (
        5200,
        pytest.approx(4000 + 2000 * 0.2),
    )
    assert again.gradients == 6000
    assert again.peak - once.peak == pytest.approx(2000 * 0.8)
    assert once.buckets == 0
    assert once.parameters == 2000
    assert once.masters == once.ema == 1000
    # After backward: fp32 gradients flattened and cast, a buffer of 50 at a time.
    assert once.at_step == 2000 + 1000 + 6000 + 2000 + 1000 + 7 + (4 + 2) * 50


def test_plain_training_fills_its_gradients_and_holds_an_average():
    plain = Sharding(None, "fp32", 0, False, 0, 0, 0, False, False, 1, False, False)
    once, again = memory(plain, 1), memory(plain, 1, accumulation=2)
    assert once.gradients == pytest.approx(4000 * 0.2)
    assert again.gradients == 4000
    assert (once.parameters, once.masters, once.optimizer, once.ema) == (4000, 0, 8000, 4000)
    assert once.buckets == once.gathered == 0
    traced = memory_of(
        SIZE, plain, 1, TRACE, 1, has_ema=False, inputs=0.0, are_gradients_traced=True
    )
    assert traced.gradients == 0
    assert traced.at_step == (4 + 4 + 8) * 1000


def test_the_norm_of_a_gradient_is_taken_in_fp64():
    """The fullest rank of two owns 500 values; the largest part of one tensor there is 500."""
    in_bf16 = replace(STAGE_3, stage=2, reduce_bucket=2000)
    size = replace(SIZE, sizes=(500, 500))
    found = memory_of(size, in_bf16, 2, TRACE, 1, has_ema=False, inputs=0.0)
    states = 2 * 1000 + (4 + 4 + 8) * 500
    assert found.at_step == states + 8 * 500
    smaller = memory_of(
        replace(SIZE, sizes=(250,) * 4), in_bf16, 2, TRACE, 1, has_ema=False, inputs=0.0
    )
    assert smaller.at_step == states + 8 * 250


def test_in_fp32_a_norm_takes_what_the_shard_does_not_already_have():
    in_fp32 = replace(STAGE_3, stage=2, reduce_bucket=2000, precision="fp32")
    size = replace(SIZE, sizes=(600, 400))
    found = memory_of(size, in_fp32, 2, TRACE, 1, has_ema=True, inputs=0.0)
    # The second rank owns parts of both: 1000 whole values, whose norm takes 8 x 500 - 4 x 500.
    assert found.at_step == 4 * 1000 + (4 + 4 + 8 + 4) * 500 + 4 * 1000 + (8 - 4) * 500


def test_a_moving_average_is_sharded_as_the_masters_are():
    for stage, share in ((1, 4), (2, 4), (3, 4)):
        sharding = replace(STAGE_3, stage=stage)
        averages = [
            memory_of(SIZE, sharding, 4, TRACE, 1, has_ema=has, inputs=0.0) for has in (True, False)
        ]
        assert averages[0].ema == 4 * 1000 / share
        assert averages[0].at_step - averages[1].at_step == 4 * 1000 / share
        assert averages[1].ema == 0


def test_more_ranks_never_need_more_memory_each():
    peaks = [memory(STAGE_3, ranks).peak for ranks in (2, 4, 64, 1024)]
    assert peaks == sorted(peaks, reverse=True)


def test_kinds_sum_to_the_peak():
    found = memory(STAGE_3)
    assert found.peak == pytest.approx(sum(found.by_kind().values()))
    assert found.peak >= found.at_step
