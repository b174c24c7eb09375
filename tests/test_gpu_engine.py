"""What only a GPU can show of a training step; `pytest -m gpu` there."""

import warnings

import numpy as np
import pytest
import torch

from supmim_scale.build.engine import choose_attention, engine_settings
from supmim_scale.build.model import MaskSpec
from supmim_scale.engine import build_engine
from supmim_scale.errors import UserError
from supmim_scale.hardware.transfer import upload
from supmim_scale.launch.world import World
from supmim_scale.models.masking import draw_masks
from supmim_scale.training.profile import read_profile, timed

# torch and torchao warn of what a device has not before they raise or take another way.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default::UserWarning")]
DEVICE = torch.device("cuda", 0)
ALONE = World(rank=0, local_rank=0, world_size=1, device=DEVICE, launcher="none")
JOB = {
    "model": "vit_ti16,depth=2",
    "layout": "clean_and_masked",
    "stage": 0,
    "policy": "none",
    "precision": "bf16",
    "image_size": 224,
    "micro_batch": 4,
    "ranks": 1,
}
BF16, FP8 = 2e-2, 5e-2  # of losses, as on two ranks of a CPU
BF16_NORM = 5e-2  # of a gradient norm: shares
LR = 1e-3
STEPS = 4


def plain_engine(*overrides):
    """(engine, arguments of its step, its attention kernel), alone on the device."""
    from benchmarks.speed.steps import fixed_batch, joint_model, recipe_of

    config = recipe_of({**JOB, "overrides": list(overrides)})
    model = joint_model(config)
    attention = choose_attention(config, JOB["micro_batch"], "bf16", ALONE)
    settings = engine_settings(config, JOB["micro_batch"], 1, "bf16", attention)
    arguments = fixed_batch(config, ALONE, JOB["micro_batch"]).arguments(is_joint=True)
    return build_engine(model, settings, ALONE), arguments, attention


def first_step(engine, arguments):
    """(loss, gradient norm) of a step."""
    loss = float(engine.forward_backward(*arguments).loss.detach())
    engine.apply(LR)
    return loss, engine.grad_norm()


@pytest.mark.parametrize("wanted", ["torch", "flash", "cudnn", "efficient", "fastest"])
def test_every_attention_kernel_gives_what_plain_math_gives_and_is_named(wanted):
    try:
        engine, arguments, kernel = plain_engine(f"engine.attention={wanted}")
    except UserError as refused:
        if wanted != "cudnn":  # what torch was built without, or the device is too old for
            raise
        pytest.skip(str(refused))
    loss, norm = first_step(engine, arguments)
    exact, exact_norm = first_step(*plain_engine("engine.attention=math")[:2])
    assert loss == pytest.approx(exact, abs=BF16)
    assert norm == pytest.approx(exact_norm, rel=BF16_NORM)
    profiler, wall_s = timed(lambda: engine.forward_backward(*arguments))
    ran = read_profile(profiler, 1, wall_s, 0.0).attention
    assert ran
    if kernel not in ("torch", "math"):
        assert any(f"scaled_dot_product_{kernel}_attention" in name for name in ran), ran


def test_ten_steps_in_fp8_stay_near_those_in_bf16():
    pytest.importorskip("torchao")
    if torch.cuda.get_device_capability(DEVICE) < (8, 9):
        pytest.skip("no fp8 below compute capability 8.9")
    curves = []
    for fp8 in ("linears", "none"):
        engine, arguments, _ = plain_engine(f"engine.fp8={fp8}")
        curves.append([first_step(engine, arguments)[0] for _ in range(10)])
    assert curves[0][-1] < curves[0][0]
    assert curves[0] == pytest.approx(curves[1], rel=FP8)


@pytest.mark.parametrize("stage", [1, 3])
def test_compiled_blocks_lose_what_eager_ones_lose(stage):
    from benchmarks.speed.throughput import measured

    own = {"task": "row", "baseline": None, "stage": stage, "warmup": 1, "steps": 2}
    job = {**JOB, **own, "profile": None}
    eager, compiled = (
        measured({**job, "overrides": [f"engine.compile={word}"]}) for word in ("false", "true")
    )
    assert "error" not in eager, eager["error"]
    assert "error" not in compiled, compiled["error"]
    assert compiled["loss"] == pytest.approx(eager["loss"], abs=BF16)


def test_uploads_do_not_wait_and_bring_the_values():
    sent = [torch.full((1 << 16,), float(value)) for value in range(32)]
    wanted = [values.clone() for values in sent]
    held = [upload(values, DEVICE) for values in sent]  # pinned memory is there from now on
    torch.cuda.synchronize()
    del held
    torch.cuda._sleep(1 << 30)  # half a second of the device's
    found = [upload(values, DEVICE) for values in sent]
    for values in sent:
        values.zero_()  # what is on its way is a copy in pinned memory
    done = torch.cuda.Event()
    done.record()
    assert not done.query(), "the host has waited"
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one.cpu(), other)


def test_a_batchs_uploads_come_from_pinned_memory():
    spec = MaskSpec(grid=14)
    masks = draw_masks(spec, 0, np.zeros(8, np.int64), np.arange(8))
    masks.to(DEVICE)  # pinned memory is there from now on
    profiler, _ = timed(lambda: masks.to(DEVICE))
    copies = [event.name for event in profiler.events() if "HtoD" in event.name]
    assert copies
    assert all("Pinned" in name for name in copies), copies
    there = masks.to(DEVICE)
    for name, values in vars(masks).items():
        assert torch.equal(getattr(there, name).cpu(), values), name


def test_a_warm_forward_and_backward_never_waits_for_the_device():
    engine, arguments, _ = plain_engine()
    for _ in range(3):
        first_step(engine, arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.forward_backward(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_warm_steps_wait_for_the_device_as_often_as_the_engine_says():
    engine, arguments, _ = plain_engine()
    for _ in range(3):
        first_step(engine, arguments)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(STEPS):
                engine.forward_backward(*arguments)
                engine.apply(LR)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [str(one.message) for one in told if "synchronizing CUDA" in str(one.message)]
    assert 0 < len(waits) <= STEPS * engine.reads_per_step, waits
