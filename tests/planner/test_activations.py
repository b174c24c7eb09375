"""Activations under fake tensors are those of the real step."""

from dataclasses import replace

import pytest
import torch
from small_models import FP32, faked, real_arguments, real_model, real_trace, small
from torch.autograd.graph import saved_tensors_hooks

from supmim_scale.build.model import target_features
from supmim_scale.models.joint import LAYOUTS
from supmim_scale.planner.activations import ActivationModel, deep_trace
from supmim_scale.planner.live import LiveBytes, storages_bytes
from supmim_scale.planner.reduction import Reduction
from supmim_scale.planner.setting import RecipeMemory
from supmim_scale.planner.sharding import Sharding
from supmim_scale.planner.trace import Numerics, fake_trace, input_tensors

STAGE_2 = Sharding(
    stage=2,
    precision="bf16",
    reduce_bucket=0,
    overlaps=False,
    max_live=0,
    prefetch=0,
    persistence=0,
    offloads_optimizer=False,
    offloads_parameters=False,
    second_shard=1,
    quantized_weights=False,
    quantized_gradients=False,
)
POLICIES = ("none", "full", "every_k", "first_k", "selective")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fake_tensors_live_and_die_as_real_ones_do(layout, policy):
    config = small(f"mim.layout={layout}")
    assert faked(config, policy, 4) == real_trace(config, policy, 4)


@pytest.mark.parametrize(
    "overrides",
    [["mim.weight=0"], ["mim.target=pixel"], ["model.pool=map"], ["loss.kind=sigmoid"]],
    ids=" ".join,
)
def test_fake_tensors_follow_every_option(overrides):
    config = small(*overrides)
    assert faked(config, "full", 2) == real_trace(config, "full", 2)


@pytest.mark.parametrize(
    "numerics",
    [Numerics(torch.bfloat16), Numerics(torch.float32, autocast=True, keeps_gradients=True)],
    ids=["deepspeed in bf16", "plain in bf16"],
)
@pytest.mark.parametrize("policy", ["full", "selective"])
def test_fake_tensors_follow_the_precision(numerics, policy):
    config = small()
    assert faked(config, policy, 2, numerics) == real_trace(config, policy, 2, numerics)


@pytest.mark.parametrize("policy", ["none", "selective"])
def test_attention_by_math_keeps_its_scores(policy):
    config, plain = small(), replace(FP32, is_attention_plain=True)
    found = faked(config, policy, 4, plain)
    assert found == real_trace(config, policy, 4, plain)
    assert found.saved > faked(config, policy, 4).saved


@pytest.mark.parametrize("policy", ["none", "full", "every_k"])
def test_what_lives_after_forward_is_what_autograd_saved_and_the_output(policy):
    # Selective checkpointing keeps products where autograd's hooks do not see them.
    config = small()
    model = real_model(config, policy)
    arguments = real_arguments(config, model, 4)
    known = [*model.parameters(), *model.buffers(), *input_tensors(arguments)]
    saved = []
    live = LiveBytes()
    live.ignore(known)
    with live, saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        output = model(*arguments)
    kept = [t for t in (*saved, *output) if t is not None]
    before = {t.untyped_storage().data_ptr() for t in known}
    made = [t for t in kept if t.untyped_storage().data_ptr() not in before]
    assert live.live == storages_bytes(made)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_deep_model_is_as_its_shallow_ones_say(policy):
    config = small("model.depth=16")
    arguments = (FP32, policy, 4, target_features(config))
    short = deep_trace(config, 16, *arguments)
    whole = faked(config, policy, 4)
    assert (short.saved, short.logits, short.peak) == (whole.saved, whole.logits, whole.peak)
    assert short.done == whole.done
    assert short.block_peaks == pytest.approx(whole.block_peaks, rel=1e-3)
    assert short.block_lives == pytest.approx(whole.block_lives, rel=1e-3)


@pytest.mark.parametrize("policy", ["none", "full"])
@pytest.mark.parametrize("blocks", [1, 3, 8])
def test_the_fullest_moment_of_stage_2_is_found_wherever_its_bucket_overflows(policy, blocks):
    config = small("model.depth=16")
    arguments = (Numerics(torch.bfloat16), policy, 4, target_features(config))
    size = RecipeMemory(config).size
    sharding = replace(STAGE_2, reduce_bucket=blocks * size.block_params)
    reduction = Reduction(size, sharding, ranks=1)
    short, whole = (
        reduction.fullest(trace, accumulation=1).total
        for trace in (deep_trace(config, 16, *arguments), fake_trace(config, *arguments))
    )
    assert short == pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize("policy", ["none", "selective"])
def test_what_autograd_saves_grows_with_the_batch_alone(policy):
    config = small("model.drop_path=0")
    two, four, eight = (faked(config, policy, batch).saved for batch in (2, 4, 8))
    assert eight - four == 2 * (four - two)


def test_between_two_batches_the_peak_is_never_too_low():
    config = small()
    model = ActivationModel({batch: faked(config, "full", batch) for batch in (1, 16)})
    for batch in (1, 3, 16):
        exact = faked(config, "full", batch)
        found = model.at(batch)
        assert exact.peak <= found.peak <= 1.1 * exact.peak
        assert found.saved == pytest.approx(exact.saved, abs=64)


def test_recomputation_saves_memory_in_its_order():
    config = small("model.depth=8")
    peaks = [faked(config, policy, 8).peak for policy in ("none", "selective", "full")]
    assert peaks == sorted(peaks, reverse=True)


def test_the_class_heads_logits_are_told_apart():
    few, many = small(), small("model.num_classes=4096")
    assert faked(many, "none", 4).logits > 4 * 4096 * 4 > faked(few, "none", 4).logits


def test_planning_leaves_torchs_random_state_as_it_was():
    before = torch.get_rng_state()
    faked(replace(small(), seed=7), "none", 2)
    assert torch.equal(before, torch.get_rng_state())


def test_a_view_counts_nothing_and_a_freed_tensor_nothing_more():
    with LiveBytes() as live:
        held = torch.zeros(256)
        view = held[:4]
        assert live.live == 1024
        del held
        assert live.live == 1024
        del view
    assert (live.live, live.peak) == (0, 1024)
