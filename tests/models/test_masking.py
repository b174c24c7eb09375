import numpy as np
import pytest
import torch

from supmim_scale.config.experiment import MaskConfig
from supmim_scale.models.masking import MaskSpec, draw_masks

SPECS = {
    "random": MaskSpec(14, MaskConfig("random", 0.5)),
    "block": MaskSpec(14, MaskConfig("block", 0.4)),
    "range": MaskSpec(14, MaskConfig("random", 0.5, 0.9)),
    "mage": MaskSpec(16, MaskConfig("random", 0.5, 1.0, 0.55)),
    "block range": MaskSpec(8, MaskConfig("block", 0.3, 0.6)),
}


def draw(spec, ids, seed=0, epoch=0):
    ids = np.asarray(ids, dtype=np.int64)
    return draw_masks(spec, seed, np.full_like(ids, epoch), ids)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_mask_belongs_to_the_sample_whatever_batch_it_is_in(spec):
    together = draw(spec, range(12))
    apart = [draw(spec, part) for part in ([0, 1, 2, 3, 4], [5], range(6, 12))]
    for name in ("mask_BN", "keep_BV", "masked_BM", "weight_BM"):
        assert torch.equal(getattr(together, name), torch.cat([getattr(p, name) for p in apart]))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_parts_of_a_mask_agree(spec):
    masks = draw(spec, range(64))
    assert masks.keep_BV.shape == (64, spec.num_visible)
    assert masks.masked_BM.shape == (64, spec.num_predicted)
    assert torch.allclose(masks.weight_BM.sum(1), torch.ones(64))
    for row in range(64):
        hidden = set(masks.mask_BN[row].nonzero().flatten().tolist())
        counted = masks.masked_BM[row][masks.weight_BM[row] > 0].tolist()
        assert set(counted) == hidden
        kept = masks.keep_BV[row].tolist()
        assert kept == sorted(set(kept))
        visible = set(range(spec.num_patches)) - hidden
        assert visible <= set(kept), "a dropping pass must see every visible patch"


def test_masks_change_with_seed_epoch_and_sample():
    base = draw(SPECS["random"], [3]).mask_BN
    others = [draw(SPECS["random"], [4]), draw(SPECS["random"], [3], seed=1),
              draw(SPECS["random"], [3], epoch=1)]  # fmt: skip
    assert not any(torch.equal(base, other.mask_BN) for other in others)


def test_every_patch_is_hidden_equally_often():
    rates = draw(SPECS["random"], range(4000)).mask_BN.float().mean(0)
    assert (rates - 0.5).abs().max() < 0.05  # six standard deviations of 4000 draws


def test_drawn_ratios_follow_mages_truncated_gaussian():
    """Mean of N(0.55, 0.25) truncated to [0.5, 1]: 0.55 + 0.25 (phi(a) - phi(b)) / Z = 0.694."""
    shares = draw(SPECS["mage"], range(4000)).mask_BN.float().mean(1)
    assert shares.min() >= 0.5
    assert shares.mean().item() == pytest.approx(0.694, abs=0.01)


def test_block_masks_are_less_scattered_than_random_ones():
    def borders(spec):
        field = draw(spec, range(100)).mask_BN.view(100, 14, 14).int()
        return (field.diff(dim=1).abs().sum() + field.diff(dim=2).abs().sum()).item()

    random, block = MaskSpec(14, MaskConfig("random", 0.4)), MaskSpec(14, MaskConfig("block", 0.4))
    assert borders(block) < 0.6 * borders(random)
