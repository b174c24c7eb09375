"""What is watched from step to step: skips in a row, losses that jump, ranks that lag behind."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from eval_fixture import ALONE
from thread_ranks import on_ranks

from supmim_scale.config.running import WatchConfig
from supmim_scale.errors import UserError
from supmim_scale.training.watch import Watch

NAN = float("nan")


def watch_of(world=ALONE, skipped_in_a_row=2, spike_sigmas=3.0, spike_window=16, hang_s=0):
    settings = WatchConfig(
        skipped_in_a_row=skipped_in_a_row,
        spike_sigmas=spike_sigmas,
        spike_window=spike_window,
        hang_s=hang_s,
    )
    return Watch(settings, world, None)


def output(class_loss=1.0, mim_loss=1.0):
    return SimpleNamespace(class_loss=torch.tensor(class_loss), mim_loss=torch.tensor(mim_loss))


def steps(watch, *skipped, engine=None):
    """What the watch says of steps that were skipped or not."""
    engine = engine or SimpleNamespace(skipped_steps=0)
    watch.begin(engine)
    found = []
    for is_skipped in skipped:
        engine.skipped_steps += is_skipped
        found.append(watch.step(engine))
    return [None if said is None else said["in_a_row"] for said in found]


def test_skips_are_counted_in_a_row_from_the_last_step_that_was_applied():
    said = steps(watch_of(), True, True, False, True, True, False, False, True)
    assert said == [1, 2, None, 1, 2, None, None, 1]


def test_one_skip_more_than_allowed_stops_the_run():
    with pytest.raises(UserError, match="3 skipped steps in a row, the last only in backward"):
        steps(watch_of(), False, True, True, True)


def test_skips_before_a_resume_are_not_counted_again():
    assert steps(watch_of(), False, True, engine=SimpleNamespace(skipped_steps=7)) == [None, 1]


def test_a_skipped_step_names_the_terms_and_the_first_samples_of_each_rank():
    def work(world):
        watch, engine = watch_of(world), SimpleNamespace(skipped_steps=0)
        watch.begin(engine)
        watch.saw(output(NAN), np.arange(3))  # of a step that was applied all the same
        watch.step(engine)
        watch.saw(output(), np.arange(100, 104))
        if world.rank == 1:
            watch.saw(output(1.0, float("inf")), np.arange(200, 206))
            watch.saw(output(NAN, NAN), np.arange(300, 306))
        engine.skipped_steps = 1
        return watch.step(engine)

    blame = {"terms": ["class_loss", "mim_loss"], "samples": [*range(200, 206), 300, 301]}
    assert on_ranks(2, work) == [{"in_a_row": 1, "non_finite": {"rank 1": blame}}] * 2


def test_a_spike_is_so_many_robust_deviations_above_the_median_of_the_last_losses():
    """Of 1 to 9: median 5, median absolute deviation 2, so 3 x 1.4826 x 2 above 5 is 13.8956."""
    losses = [float(loss) for loss in range(1, 10)]
    for loss, is_spike in ((13.89, False), (13.90, True), (NAN, True), (0.0, False)):
        watch = watch_of()
        assert not any(watch.is_spike(loss) for loss in losses)
        assert watch.is_spike(loss) == is_spike
    assert not any(watch_of(spike_sigmas=0).is_spike(loss) for loss in [*losses, 1e9])


def test_nothing_is_a_spike_before_eight_losses_are_known():
    watch = watch_of()
    assert not any(watch.is_spike(loss) for loss in (1.0, 1e3, 1.0, 1e6, 1.0, 1.0, 1.0, 1e9))
    assert watch.is_spike(1e9)


def test_losses_that_are_all_but_equal_may_rise_by_a_thousandth_a_deviation():
    for loss, is_spike in ((2.0059, False), (2.0061, True)):
        watch = watch_of()
        assert not any(watch.is_spike(2.0) for _ in range(8))
        assert watch.is_spike(loss) == is_spike


def test_a_spike_does_not_enter_what_the_next_is_measured_against():
    watch = watch_of(spike_window=9)
    assert not any(watch.is_spike(float(loss)) for loss in range(1, 10))
    assert all(watch.is_spike(14.0) for _ in range(20))
    assert not any(watch.is_spike(13.0) for _ in range(9))  # nine of them fill the window
    assert watch.is_spike(13.1)


def test_the_slowest_rank_is_named_with_its_median_time():
    def work(world):
        watch = watch_of(world)
        watch._step_times = [[1.0, 9.0, 2.0], [5.0, 4.0, 0.5], [3.0]][world.rank]
        return watch.slowest(), watch.slowest()

    first, second = on_ranks(3, work)[2]
    assert first == {"fastest_rank_s": 2.0, "slowest_rank_s": 4.0, "slowest_rank": 1}
    assert second["slowest_rank_s"] == 0.0  # since the last call
