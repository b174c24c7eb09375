"""Checkpoints of MAE, AugReg, DINOv2 and BEiT, as timm builds them, in a plain ViT."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from supmim_scale.build.model import recipe_model
from supmim_scale.config import load_config
from supmim_scale.errors import UserError
from supmim_scale.models.convert import plain_tensors
from supmim_scale.models.weights import start_from

TINY = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 0,
}
JOINT = [
    "model.width=32",
    "model.depth=2",
    "model.heads=2",
    "model.patch_size=8",
    "mim.target=pixel",
    "model.class_token=true",
    "model.pool=token",
]


def drawn(name, **options):
    """A model whose every parameter says something: biases and scales of 0 or 1 prove nothing."""
    torch.manual_seed(0)
    model = timm.create_model(name, **TINY, **options).eval()
    for param in model.parameters():
        torch.nn.init.normal_(param, std=0.3)
    return model


def joint(size=32):
    return recipe_model(load_config("smoke", [*JOINT, f"model.image_size={size}"]), 192)


def saved(model, path):
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, path)
    return str(path)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_base_patch16_224", {}),  # AugReg and MAE
        ("vit_base_patch14_dinov2", {}),
        (
            "beit_base_patch16_224",
            {"use_abs_pos_emb": True, "use_rel_pos_bias": False, "global_pool": "token"},
        ),
    ],
)
@torch.no_grad()
def test_a_run_starts_from_the_same_function(name, options, tmp_path):
    model, started = drawn(name, **options), joint().eval()
    left = start_from(started, saved(model, tmp_path / "x.safetensors"))
    images = torch.randn(2, 3, 32, 32)
    ours, theirs = started.encoder.forward_features(images), model.forward_features(images)
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
    assert {name for name in left if not name.startswith("decoder.")} == {
        "encoder.head.weight",
        "encoder.head.bias",
    }


@torch.no_grad()
def test_beits_relative_positions_are_not_taken_and_it_is_said(tmp_path):
    model, started = drawn("beit_base_patch16_224"), joint()
    before = started.encoder.pos_embed.clone()
    left = start_from(started, saved(model, tmp_path / "x.safetensors"))
    assert "encoder.pos_embed" in left
    assert "not taken blocks.1.attn.relative_position_bias_table" in left
    assert torch.equal(started.encoder.pos_embed, before)
    scaled = model.blocks[0].gamma_1[:, None] * model.blocks[0].attn.proj.weight
    assert torch.equal(started.encoder.blocks[0].attn.proj.weight, scaled)


@torch.no_grad()
def test_positions_are_resampled_and_registers_refused(tmp_path):
    started = joint(size=48)
    start_from(started, saved(drawn("vit_base_patch14_dinov2"), tmp_path / "x.safetensors"))
    with pytest.raises(UserError, match=r"reg_token.*no place"):
        start_from(
            joint(), saved(drawn("vit_base_patch14_reg4_dinov2"), tmp_path / "y.safetensors")
        )
    with pytest.raises(UserError, match=r"timm cannot open|nowhere"):
        start_from(joint(), "timm/nowhere_patch16_224")


def test_the_gated_mlp_of_dinov2s_largest_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"mlp\.fc1\.weight.*weights of this encoder"):
        start_from(joint(), saved(drawn("vit_giant_patch14_dinov2"), tmp_path / "x.safetensors"))


def test_a_plain_checkpoint_passes_unchanged():
    given = drawn("vit_base_patch16_224").state_dict()
    tensors, left = plain_tensors(given)
    assert not left
    assert all(torch.equal(tensors[name], given[name]) for name in given)
