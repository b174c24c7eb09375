"""ZeRO's published arithmetic, and what DeepSpeed keeps beyond it."""

import pytest

from supmim_scale.planner.states import engine_states, zero_states

PARAMS = 7.5e9


@pytest.mark.parametrize(
    ("ranks", "gigabytes"),
    [(4, (120, 52.5, 41.3, 30)), (64, (120, 31.4, 16.6, 1.88)), (1024, (120, 30.1, 15.1, 0.12))],
)
def test_states_are_those_of_the_zero_papers_first_table(ranks, gigabytes):
    # Rajbhandari et al. 2020 (arXiv 1910.02054), table 1, 7.5 B parameters.
    for stage, expected in enumerate(gigabytes):
        found = zero_states(PARAMS, ranks, stage).total / 1e9
        assert found == pytest.approx(expected, abs=0.06 if expected > 2 else 0.006)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_on_one_rank_stages_2_and_3_hold_the_same(precision):
    second, third = (engine_states(1000, 1, s, precision, has_ema=True) for s in (2, 3))
    assert second == third


def test_stage_1_in_bf16_holds_whole_gradients_twice():
    states = engine_states(1000, 10, 1, "bf16", has_ema=False)
    assert states.gradients == (4 + 2) * 1000
    assert states.masters + states.optimizer == 12 * 100


def test_plain_training_holds_fp32_parameters_gradients_and_moments_once():
    assert engine_states(1000, 1, None, "bf16", has_ema=False).total == 16 * 1000
    assert engine_states(1000, 1, None, "fp32", has_ema=True).total == 20 * 1000
