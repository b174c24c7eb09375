"""The reference engine by itself: its gradients, its averages, its counters and its state."""

import numpy as np
import pytest
import torch
from eval_fixture import ALONE

from supmim_scale.build.engine import engine_settings
from supmim_scale.build.model import mask_spec, recipe_model
from supmim_scale.config import load_config
from supmim_scale.config.experiment import OptimConfig
from supmim_scale.engine.base import build_engine
from supmim_scale.engine.ema import ShardEma
from supmim_scale.engine.state import Counters
from supmim_scale.errors import UserError
from supmim_scale.launch.world import World
from supmim_scale.models.losses import class_targets
from supmim_scale.models.masking import draw_masks
from supmim_scale.models.optim import build_adamw, set_lr
from supmim_scale.models.targets import PixelTarget

TINY = [
    "model.width=32",
    "model.depth=2",
    "model.heads=2",
    "mim.target=pixel",
    "engine.kind=plain",
    "optim.layer_decay=0.5",
    "optim.clip_grad_norm=0",
]


def arguments(config, ids):
    images = torch.stack(
        [torch.randn(3, 48, 48, generator=torch.Generator().manual_seed(i)) for i in ids]
    )
    targets = class_targets(torch.tensor(ids)[:, None] % 16, 16, "softmax", 0.1)
    masks = draw_masks(mask_spec(config, 6), 0, np.zeros_like(ids), np.array(ids))
    return images, targets, masks, PixelTarget(8)(images)


def built(*overrides, accumulation=1):
    """(config, model, optimizer, engine)."""
    config = load_config("smoke", [*TINY, *overrides])
    model = recipe_model(config, 192)
    settings = engine_settings(config, 8 // accumulation, accumulation, "fp32", "torch")
    engine = build_engine(model, settings, ALONE)
    return config, model, engine._optimizer, engine


def weights(model):
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def step(engine, config, *parts, lr=1e-3):
    outputs = [engine.forward_backward(*arguments(config, list(ids))) for ids in parts]
    engine.apply(lr)
    return outputs


def test_a_step_of_micro_batches_is_the_step_of_the_whole_batch():
    config, _, optimizer, engine = built()
    (output,) = step(engine, config, range(8))
    _, _, other, split = built(accumulation=4)
    outputs = step(split, config, *(range(i, i + 2) for i in (0, 2, 4, 6)))
    losses = [part.loss.item() for part in outputs]
    assert output.loss.item() == pytest.approx(sum(losses) / 4, rel=1e-5)
    assert split.grad_norm() == pytest.approx(engine.grad_norm(), rel=1e-5)
    firsts = ([state["exp_avg"] for state in one.state.values()] for one in (optimizer, other))
    for whole, summed in zip(*firsts, strict=True):
        assert torch.allclose(whole, summed, rtol=1e-4, atol=1e-7)


def test_gradients_are_clipped_to_the_limit_and_their_norm_is_that_before():
    config, model, _, free = built("optim.lr=1")
    norms, moved = [], []
    for limit in (0, 0.01):
        config, model, optimizer, engine = built(f"optim.clip_grad_norm={limit}")
        step(engine, config, range(8))
        norms.append(engine.grad_norm())
        firsts = [optimizer.state[p]["exp_avg"] for p in model.parameters()]
        moved.append(torch.cat([m.flatten() for m in firsts]).norm().item())
    assert norms[0] == pytest.approx(norms[1])
    assert norms[0] > 0.1
    keeps = 1 - config.optim.beta1  # the first moment is that share of the gradient
    assert moved == pytest.approx([keeps * norms[0], keeps * 0.01], rel=1e-3)
    assert np.isnan(free.grad_norm())  # of no step yet


def test_a_step_that_is_not_finite_changes_nothing_but_its_counter():
    config, model, _, engine = built()
    before = weights(model)
    images, *rest = arguments(config, list(range(8)))
    engine.forward_backward(torch.full_like(images, float("nan")), *rest)
    engine.apply(1e-3)
    assert (engine.applied_steps, engine.skipped_steps) == (0, 1)
    assert engine.counters() == Counters(0, 1, 0.0)
    assert all(torch.equal(param, before[name]) for name, param in weights(model).items())
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    step(engine, config, range(8))
    assert engine.counters() == Counters(1, 1, 1.0)
    assert any((param != before[name]).any() for name, param in weights(model).items())
    assert engine.named_weights(ema=True).keys() == before.keys()


def test_the_average_is_tensorflows():
    """Decay (1 + t) / (10 + t) after step t, until it is the recipe's 0.95."""
    live = [torch.tensor([0.0]), torch.tensor([1.0, 2.0])]
    ema, expected = ShardEma(live, 0.5), 0.0
    for number in range(1, 12):
        live[0].fill_(float(number))
        ema.update(number)
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * number
        assert ema.average[0].item() == pytest.approx(expected, rel=1e-6)
    assert ema.average[1].tolist() == [1.0, 2.0]
    with ema.swapped_in():
        assert live[0].item() == pytest.approx(expected, rel=1e-6)
    assert live[0].item() == 11.0
    live[1].fill_(7.0)
    ema.take_over()
    assert [value.tolist() for value in ema.average] == [[11.0], [7.0, 7.0]]


def test_the_saved_average_is_that_of_the_applied_steps():
    config, model, _, engine = built("optim.ema_decay=0.5")
    average = weights(model)
    for number in range(1, 4):
        step(engine, config, range(8))
        decay = min(0.5, (1 + number) / (10 + number))
        average = {n: decay * average[n] + (1 - decay) * p for n, p in weights(model).items()}
    saved, raw = engine.named_weights(ema=True), engine.named_weights(ema=False)
    assert all(torch.allclose(saved[name], average[name], atol=1e-6) for name in average)
    assert all(torch.equal(raw[name], param) for name, param in weights(model).items())
    assert any((saved[name] - raw[name]).abs().max() > 1e-4 for name in raw)
    _, _, _, without = built("optim.ema_decay=0")
    assert without.named_weights(ema=True).keys() == raw.keys()


def test_a_state_in_pieces_goes_on_bit_for_bit():
    config, model, _, engine = built("optim.ema_decay=0.5")
    step(engine, config, range(8))
    pieces = {(p.name, p.kind): p for p in engine.pieces()}
    names = [name for name, _ in model.named_parameters()]
    kinds = ("weight", "exp_avg", "exp_avg_sq", "ema")
    assert set(pieces) == {(name, kind) for name in names for kind in kinds}
    assert all(piece.start == 0 for piece in pieces.values())
    _, other, _, again = built("optim.ema_decay=0.5", "seed=9")

    def read(name, kind, start, count):
        assert (start, count) == (0, len(pieces[name, kind].values))
        return pieces[name, kind].values

    again.restore(read, engine.counters())
    assert again.counters() == engine.counters() == Counters(1, 0, 1.0)
    for one in (engine, again):
        step(one, config, range(8, 16), lr=1e-2)
    assert all(torch.equal(param, weights(other)[name]) for name, param in weights(model).items())
    ours, theirs = (one.named_weights(ema=True) for one in (engine, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    fresh = {(p.name, p.kind): p.values for p in built()[3].pieces()}
    assert all(not values.any() for (_, kind), values in fresh.items() if "exp_avg" in kind)


def test_groups_are_given_the_learning_rate_by_their_depth():
    _, _, optimizer, engine = built()
    engine.forward_backward(*arguments(load_config("smoke", TINY), [0, 1]))
    engine.apply(0.25)
    rates = {group["lr"] for group in optimizer.param_groups}
    assert rates == {0.25, 0.125, 0.0625, 0.03125}  # depth 2: two blocks between input and head
    set_lr(optimizer, 1.0)
    assert max(group["lr"] for group in optimizer.param_groups) == 1.0
    plain = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3.0)
    set_lr(plain, 0.5)
    assert plain.param_groups[0]["lr"] == 0.5
    assert engine.reads_per_step == 1


def test_the_optimizer_is_adamw_with_the_recipes_numbers():
    param = torch.nn.Parameter(torch.tensor([1.0]))
    groups = [{"params": [param], "weight_decay": 0.5}]
    optim = OptimConfig(global_batch=1, lr=1.0, beta1=0.8, beta2=0.9, eps=0.25)
    optimizer = build_adamw(groups, optim)
    set_lr(optimizer, 0.1)
    assert optimizer.defaults["fused"]  # one kernel, of which the host reads no step
    param.grad = torch.tensor([2.0])
    optimizer.step()
    # By hand: 1 - lr wd, less lr m / (sqrt(v) + eps) with m = 2 and v = 4 unbiased.
    assert param.item() == pytest.approx(1 - 0.1 * 0.5 - 0.1 * 2 / (2 + 0.25), rel=1e-5)


def test_plain_pytorch_on_several_ranks_is_refused():
    config = load_config("smoke", TINY)
    settings = engine_settings(config, 4, 1, "fp32", "torch")
    several = World(0, 0, 2, torch.device("cpu"), "none")
    with pytest.raises(UserError, match="plain with 2 ranks"):
        build_engine(recipe_model(config, 192), settings, several)
