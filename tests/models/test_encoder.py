"""Facts from outside: published sizes, timm's counts and logits."""

import pytest
import torch

from supmim_scale.build.model import recipe_model
from supmim_scale.config import load_config
from supmim_scale.errors import UserError
from supmim_scale.models import encoder as enc
from supmim_scale.sizes import VARIANTS

DEFAULT = {"num_classes": 1000, "image_size": 224, "pool": "token", "class_token": True}
# Parameters in millions with a 1000-class head, as published: DeiT (arXiv 2012.12877) table 1 for
# Ti, S, B; ViT (arXiv 2010.11929) table 1 for L and H (307 M and 632 M, without the head's
# million or with a patch of 16 and 14); Zhai et al. (arXiv 2106.04560) table 2 for g and G.
PUBLISHED_M = {
    "vit_ti16": (5.7, 0.1),
    "vit_s16": (22.1, 0.1),
    "vit_b16": (86.6, 0.1),
    "vit_l16": (307, 4),
    "vit_h14": (632, 1),
    "vit_g14": (1011, 2),
    "vit_gg14": (1843, 3),
}


def count(module):
    return sum(param.numel() for param in module.parameters())


@pytest.mark.parametrize("name", PUBLISHED_M)
def test_parameters_equal_the_published_count(name):
    with torch.device("meta"):
        model = enc.build_encoder(name, **DEFAULT)
    millions, tolerance = PUBLISHED_M[name]
    assert count(model) / 1e6 == pytest.approx(millions, abs=tolerance)


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_and_shape_equal_timms_own_model(name):
    variant = VARIANTS[name]
    with torch.device("meta"):
        ours = enc.build_encoder(name, **DEFAULT)
        timms = enc.timm.create_model(
            variant.timm_name, patch_size=variant.patch_size, num_classes=1000
        )
    assert count(ours) == count(timms)
    shape = enc.geometry(ours)
    assert (shape.patch_size, shape.width, shape.depth, shape.heads, shape.mlp) == (
        variant.patch_size,
        variant.width,
        variant.depth,
        variant.heads,
        variant.mlp,
    )


@pytest.mark.parametrize(("pool", "class_token"), [("avg", False), ("token", True), ("map", False)])
def test_encoding_in_parts_gives_timms_logits(pool, class_token):
    shape = {
        "num_classes": 7,
        "image_size": 32,
        "patch_size": 8,
        "width": 32,
        "depth": 2,
        "heads": 2,
        "pool": pool,
        "class_token": class_token,
    }
    model = enc.build_encoder("vit_ti16", **shape).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        parts = model.forward_head(enc.encode(model, (model.patch_embed(images), None))[0])
        assert torch.equal(parts, model(images))


def test_dropping_patches_equals_timms_tokens_without_them():
    """With one block's attention over kept tokens only, order and positions must be kept."""
    model = enc.build_encoder(
        "vit_ti16",
        num_classes=7,
        image_size=32,
        patch_size=8,
        width=32,
        depth=1,
        heads=2,
        pool="token",
        class_token=True,
    ).eval()
    images, keep = torch.randn(2, 3, 32, 32), torch.tensor([[0, 3, 9], [2, 5, 15]])
    with torch.no_grad():
        tokens = model._pos_embed(model.patch_embed(images))
        picked = torch.stack([t[[0, *(k + 1).tolist()]] for t, k in zip(tokens, keep, strict=True)])
        expected = model.norm(model.blocks(picked))
        assert torch.equal(enc.encode(model, (model.patch_embed(images), keep))[0], expected)


def test_a_sigmoid_head_starts_at_the_prior():
    model = enc.build_encoder("vit_ti16", **DEFAULT)
    enc.init_head_bias(model)
    assert model.head.bias.sigmoid().mean().item() == pytest.approx(1 / 1001, rel=1e-3)


@pytest.mark.parametrize("own", [0, 1])
def test_positions_of_another_grid_are_timms_resampled_and_a_class_tokens_stays(own):
    from timm.layers import resample_abs_pos_embed

    options = ["model.width=32", "model.heads=2", f"model.class_token={'true' if own else 'false'}"]
    encoder = recipe_model(load_config("smoke", [*options, "mim.weight=0"]), 0).encoder
    assert (encoder.num_prefix_tokens, tuple(encoder.patch_embed.grid_size)) == (own, (6, 6))
    for beside in (0, 1):
        given = torch.randn(1, 8 * 8 + beside, 32)
        if own > beside:
            with pytest.raises(UserError, match="64 positions without a class token"):
                enc.resampled_positions(encoder, given, "x")
            continue
        found = enc.resampled_positions(encoder, given, "x")
        kept = given[:, beside - own :]
        assert torch.equal(found, resample_abs_pos_embed(kept, [6, 6], num_prefix_tokens=own))
        if own:
            assert torch.equal(found[:, 0], given[:, 0])


def test_an_encoder_with_gated_mlps_is_refused_for_its_flops_are_not_counted():
    with torch.device("meta"), pytest.raises(UserError, match="a gated MLP"):
        enc.build_encoder("vit_giant_patch14_dinov2", **DEFAULT)
