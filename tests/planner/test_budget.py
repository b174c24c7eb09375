from dataclasses import replace

import pytest
from conftest import assert_refused, command
from small_models import FP32, real_trace, small

from supmim_scale.errors import UserError
from supmim_scale.planner.budget import within_budget

BATCH = 8


def recipe(gib):
    return small(
        "engine.kind=plain",
        "engine.precision=fp32",
        f"optim.global_batch={BATCH}",
        "engine.activation_checkpointing=first_k",
        f"engine.activation_budget={gib}",
    )


def measured(config):
    """Peak of the activations of a step that is computed, as the plain engine does it."""
    numerics = replace(FP32, keeps_gradients=True)
    return real_trace(config, config.engine.activation_checkpointing, BATCH, numerics).peak


def test_as_few_blocks_as_the_budget_needs_are_recomputed():
    peaks = {}
    for blocks in range(5):
        config = recipe(1.0)
        policy = "first_k" if blocks else "none"
        engine = replace(config.engine, activation_checkpointing=policy, checkpoint_every_k=blocks)
        peaks[blocks] = measured(replace(config, engine=engine))
    assert sorted(peaks.values(), reverse=True) == list(peaks.values())
    for blocks in range(1, 5):
        found = within_budget(recipe(peaks[blocks] / 2**30), 1, "fp32").engine
        assert found.activation_checkpointing == "first_k"
        assert found.checkpoint_every_k == blocks
        assert found.activation_budget is None
    assert within_budget(recipe(1.0), 1, "fp32").engine.activation_checkpointing == "none"


def test_a_budget_below_full_recomputation_is_refused():
    with pytest.raises(UserError, match=r"engine.activation_budget: found 0.0001 GiB"):
        within_budget(recipe(0.0001), 1, "fp32")


def test_a_budget_beside_another_policy_is_refused():
    done = command("recipes", "smoke", "engine.activation_budget=4", check=False)
    assert_refused(done, "engine.activation_budget", "first_k, whose k the budget decides")
