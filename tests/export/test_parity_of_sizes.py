"""Logits of the large encoders: timm's export read by us, ours read by timm."""

import pytest
import timm
import torch

from supmim_scale.evaluation.subject import open_subject
from supmim_scale.models.encoder import build_encoder, save_timm_folder, timm_arguments
from supmim_scale.sizes import VARIANTS

SHAPE = {"num_classes": 1000, "image_size": 224, "pool": "avg", "class_token": False}


@pytest.fixture
def drawn(monkeypatch):
    """`drawn(make)`: a model with cheap random weights; nothing is initialised that a file then
    fills, which for a billion parameters takes longer than the test."""
    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", lambda tensor, *_, **__: tensor)
    for module in (timm.models.vision_transformer, timm.layers.weight_init):
        monkeypatch.setattr(module, "trunc_normal_", lambda tensor, *_, **__: tensor)

    def call(make):
        model, values = make().eval(), 0.05 * torch.randn(1 << 16)
        for param in model.parameters():
            rows = values.repeat(-(-param.numel() // len(values)))[: param.numel()]
            param.data.copy_(rows.view(param.shape))
            values = values.roll(7)
        return model

    return call


@pytest.mark.parametrize(
    "name", ["vit_l16", "vit_l14", "vit_h14", pytest.param("vit_g14", marks=pytest.mark.slow)]
)
@torch.no_grad()
def test_logits_are_equal_in_both_directions(name, drawn, tmp_path):
    images = torch.randn(1, 3, 224, 224)
    variant = VARIANTS[name]
    model = drawn(lambda: timm.create_model(variant.timm_name, patch_size=variant.patch_size))
    size = {"patch_size": variant.patch_size}
    timm.models.save_for_hf(model, str(tmp_path), model_args=size, safe_serialization=True)
    subject = open_subject(str(tmp_path), None, None, [])
    subject.encoder.eval()
    gap = model(subject.prepared(images)) - subject.logits(subject.features(images))
    assert gap.abs().max() <= 1e-6
    del model, subject
    ours = drawn(lambda: build_encoder(name, **SHAPE))
    _, arguments = timm_arguments(name, **SHAPE)
    save_timm_folder(ours, arguments, tmp_path, mean=0.5, std=0.5, crop=0.9)
    expected = ours(images)
    del ours
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert (theirs(images) - expected).abs().max() <= 1e-6
    (tmp_path / "model.safetensors").unlink()
