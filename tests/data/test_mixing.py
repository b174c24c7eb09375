"""Mixup and CutMix: shares, boxes and soft labels."""

import numpy as np
import pytest
import torch

from supmim_scale.config.experiment import AugmentConfig
from supmim_scale.data.mixing import draw_mix
from supmim_scale.models.losses import class_targets

CPU = torch.device("cpu")
SIZE = 32


def mix_of(settings, ids):
    return draw_mix(settings, SIZE, 0, np.zeros_like(ids), ids, CPU)


def test_mixup_blends_neighbours_and_their_labels_in_one_share():
    images = torch.rand(4, 3, SIZE, SIZE)
    targets = torch.eye(4)
    mix = mix_of(AugmentConfig(mixup_alpha=0.8), np.arange(4))
    own = mix.own_B[:, None]
    assert torch.allclose(mix.targets(targets), own * targets + (1 - own) * targets[[1, 0, 3, 2]])
    own = own[:, :, None, None]
    assert torch.allclose(mix.images(images), own * images + (1 - own) * images[[1, 0, 3, 2]])


def test_cutmix_pastes_a_box_and_its_area_is_the_share():
    images = torch.arange(1.0, 65.0)[:, None, None, None].expand(64, 3, SIZE, SIZE)
    mix = mix_of(AugmentConfig(cutmix_alpha=1.0), np.arange(64))
    mixed = mix.images(images)
    own = (mixed == images).float().mean(dim=(1, 2, 3))
    assert torch.allclose(own, mix.own_B, atol=1e-6)
    partners = images.view(-1, 2, 3, SIZE, SIZE).flip(1).reshape(images.shape)
    assert ((mixed == images) | (mixed == partners)).all()
    assert 0 < own.min() < 0.3
    assert own.max() > 0.9


def test_several_labels_an_image_are_shared_out_too():
    labels = torch.tensor([[0, 2], [1, -1]])
    targets = class_targets(labels, 3, "sigmoid", 0.0)
    mixed = mix_of(AugmentConfig(mixup_alpha=1.0), np.arange(2))
    a = float(mixed.own_B[0])
    assert mixed.targets(targets)[0].tolist() == pytest.approx([a, 1 - a, a], abs=1e-6)


def test_shares_follow_their_beta_distribution():
    own = mix_of(AugmentConfig(mixup_alpha=0.2), np.arange(20_000)).own_B
    # Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1))
    assert own.mean().item() == pytest.approx(0.5, abs=0.01)
    assert own.var().item() == pytest.approx(1 / (4 * 1.4), rel=0.03)


def test_where_both_are_on_the_recipe_says_how_often():
    augment = AugmentConfig(mixup_alpha=0.8, cutmix_alpha=1.0, cutmix_share=0.3)
    boxes = mix_of(augment, np.arange(20_000)).boxes_B4
    assert (boxes[:, 2] > 0).float().mean().item() == pytest.approx(0.3, abs=0.02)


def test_a_share_belongs_to_the_sample_whatever_batch_it_is_in():
    whole = mix_of(AugmentConfig(mixup_alpha=0.8, cutmix_alpha=1.0), np.arange(100))
    part = mix_of(AugmentConfig(mixup_alpha=0.8, cutmix_alpha=1.0), np.arange(40, 44))
    assert torch.equal(whole.own_B[40:44], part.own_B)
    assert torch.equal(whole.boxes_B4[40:44], part.boxes_B4)
