import pytest

from supmim_scale.config.experiment import OptimConfig
from supmim_scale.models.optim import lr_factor_at


def curve(schedule, steps=100, **options):
    optim = OptimConfig(global_batch=1, lr=1.0, schedule=schedule, **options)
    return [lr_factor_at(step, steps, optim) for step in range(steps)]


def test_warm_up_reaches_the_peak_linearly():
    for schedule in ("cosine", "rsqrt", "wsd"):
        assert curve(schedule, warmup_steps=10)[:10] == pytest.approx(
            [x / 10 for x in range(1, 11)]
        )


def test_cosine_is_torchs():
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=90)
    ours = curve("cosine", warmup_steps=10)[10:]
    for factor in ours:
        assert factor == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        theirs.step()


def test_wsd_is_flat_then_linear_to_zero():
    factors = curve("wsd", warmup_steps=10, cooldown_steps=20)
    assert factors[10:80] == [1.0] * 70
    assert factors[80:] == pytest.approx([(100 - s) / 20 for s in range(80, 100)])


def test_rsqrt_halves_when_time_quadruples():
    optim = OptimConfig(1, 1.0, schedule="rsqrt", warmup_steps=10, rsqrt_timescale=100)
    at = [lr_factor_at(step, 10**6, optim) for step in (10, 110, 410, 1610)]
    assert at == pytest.approx([1, 1, 0.5, 0.25])


def test_the_cool_down_starts_from_the_same_curve():
    """What lets one long run give several compute points."""
    short, long = (
        curve("rsqrt", 60, cooldown_steps=20, rsqrt_timescale=5),
        curve("rsqrt", 100, rsqrt_timescale=5),
    )
    assert short[:41] == long[:41]
