"""The analytic FLOPs equal torch's counter on the meta device, exactly."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from supmim_scale.build.model import (
    encoder_geometry,
    joint_shape,
    mask_spec,
    recipe_encoder,
    recipe_model,
)
from supmim_scale.config import load_config
from supmim_scale.engine.activation_checkpointing import apply_activation_checkpointing
from supmim_scale.models.flops import step_flops
from supmim_scale.models.joint import LAYOUTS
from supmim_scale.models.masking import draw_masks

POLICIES = ("none", "full", "every_k", "first_k", "selective")
OUT = 1024


def config_for(model, *overrides):
    own = [f"model.{name}=null" for name in ("patch_size", "width", "depth", "heads")]
    return load_config(
        "smoke",
        [
            *own,
            f"model.name={model}",
            "model.image_size=224",
            "model.num_classes=21841",
            "model.decoder_width=512",
            "model.decoder_heads=8",
            *overrides,
        ],
    )


def counted(config, policy, batch=2):
    """(forward, backward + recompute) FLOPs per image by torch's counter."""
    with torch.device("meta"):
        model = recipe_model(config, OUT)
    apply_activation_checkpointing(model.block_lists(), policy, 2)
    spec = mask_spec(config, encoder_geometry(config).grid)
    ids = np.arange(batch)
    meta = torch.device("meta")
    masks = draw_masks(spec, 0, np.zeros_like(ids), ids).to(meta)
    size = config.model.image_size
    arguments = [
        torch.empty(batch, 3, size, size, device=meta),
        torch.empty(batch, config.model.num_classes, device=meta),
    ]
    if config.mim.weight:
        codes = torch.zeros(batch, spec.num_patches, dtype=torch.long, device=meta)
        arguments += [masks, codes]
    model.train()
    with FlopCounterMode(display=False) as forward:
        loss = model(*arguments).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops() / batch, backward.get_total_flops() / batch


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", ["vit_b14", "vit_l16", "vit_h14", "vit_g14", "vit_gg14"])
def test_analytic_flops_equal_the_counter(model, layout, policy):
    config = config_for(model, f"mim.layout={layout}")
    flops = step_flops(joint_shape(config, OUT), policy, every_k=2)
    assert counted(config, policy) == (flops.forward, flops.backward + flops.recompute)


@pytest.mark.parametrize(
    "overrides",
    [
        ["mim.weight=0"],
        ["mim.weight=0", "model.pool=map"],
        ["model.pool=token", "model.class_token=true"],
        ["model.drop_path=0.1"],
        ["model.drop_path=0.1", "mim.layout=masked_only"],
        ["mask.ratio=0.5", "mask.ratio_max=1.0", "mask.ratio_mode=0.55"],
        ["mask.ratio=0.75", "mim.target=codebook"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("policy", POLICIES)
def test_analytic_flops_follow_every_option(overrides, policy):
    config = config_for("vit_b14", *overrides)
    flops = step_flops(joint_shape(config, OUT), policy, every_k=2)
    assert counted(config, policy) == (flops.forward, flops.backward + flops.recompute)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("policy", ["none", "full", "every_k"])
def test_flops_of_kept_samples_are_those_of_a_micro_batch(layout, policy):
    options = ["model.drop_path=0.4", "model.drop_path_kept=true", f"mim.layout={layout}"]
    config = config_for("vit_b14", *options)
    flops = step_flops(joint_shape(config, OUT, micro_batch=6), policy, every_k=2)
    found = counted(config, policy, batch=6)
    assert found == pytest.approx((flops.forward, flops.backward + flops.recompute), rel=1e-8)
    whole = step_flops(joint_shape(config_for("vit_b14", *options[2:]), OUT), policy)
    assert flops.forward < 0.85 * whole.forward


def test_inference_costs_what_timms_model_costs():
    config = config_for("vit_b14")
    with torch.device("meta"):
        encoder, images = recipe_encoder(config), torch.empty(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter:
        encoder(images)
    shape = replace(joint_shape(config, OUT), layout=None)  # no decoder
    assert step_flops(shape).forward == counter.get_total_flops()


def test_the_joint_step_costs_half_more_than_classification():
    """Clean pass plus half the patches: 1.5 times, and a little for the decoder."""
    joint = step_flops(joint_shape(config_for("vit_l14"), OUT)).model
    alone = step_flops(joint_shape(config_for("vit_l14", "mim.weight=0"), OUT)).model
    assert 1.5 < joint / alone < 1.56
