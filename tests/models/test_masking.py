import numpy as np
import pytest
import torch
from scipy.stats import truncnorm

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


def test_masks_are_the_same_on_another_device():
    masks = draw(SPECS["range"], range(4))
    moved = masks.to(torch.device("cpu"))
    assert vars(moved).keys() == vars(masks).keys()
    assert all(torch.equal(part, vars(masks)[name]) for name, part in vars(moved).items())


def test_masks_change_with_seed_epoch_and_sample():
    base = draw(SPECS["random"], [3]).mask_BN
    others = [
        draw(SPECS["random"], [4]),
        draw(SPECS["random"], [3], seed=1),
        draw(SPECS["random"], [3], epoch=1),
    ]
    assert not any(torch.equal(base, other.mask_BN) for other in others)


def test_every_patch_is_hidden_equally_often():
    rates = draw(SPECS["random"], range(4000)).mask_BN.float().mean(0)
    assert (rates - 0.5).abs().max() < 0.05  # six standard deviations of 4000 draws


def test_drawn_ratios_follow_mages_truncated_gaussian():
    """Mean of N(0.55, 0.25) truncated to [0.5, 1]: 0.55 + 0.25 (phi(a) - phi(b)) / Z = 0.694."""
    shares = draw(SPECS["mage"], range(4000)).mask_BN.float().mean(1)
    assert shares.min() >= 0.5
    assert shares.mean().item() == pytest.approx(0.694, abs=0.01)


def test_uniform_ratios_fill_their_whole_range_evenly():
    """round(0.5 x 196) = 98 to round(0.9 x 196) = 176 patches, each count as often."""
    counts = draw(SPECS["range"], range(8000)).mask_BN.sum(1).double()
    assert (counts.min(), counts.max()) == (98, 176)
    quarters = np.quantile(counts.numpy() / 196, [0.25, 0.5, 0.75])
    assert quarters == pytest.approx([0.6, 0.7, 0.8], abs=0.01)


@pytest.mark.parametrize("mode", [0.55, 0.8])
def test_gaussian_ratios_have_the_quantiles_of_scipys_truncated_normal(mode):
    spec = MaskSpec(16, MaskConfig("random", 0.5, 1.0, mode))
    shares = draw(spec, range(4000)).mask_BN.float().mean(1).numpy()
    law = truncnorm((0.5 - mode) / 0.25, (1.0 - mode) / 0.25, loc=mode, scale=0.25)
    at = [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99]
    assert np.quantile(shares, at) == pytest.approx(law.ppf(at), abs=0.015)
    assert shares.std() == pytest.approx(law.std(), rel=0.04)


def test_counts_of_a_spec_are_those_of_its_ratios():
    """By hand: 0.5 of 196 is 98; 0.3 and 0.6 of 64 are 19 and 38; MAGE's masks may hide all."""
    specs = SPECS.values()
    assert [spec.num_dropped for spec in specs] == [98, 78, 98, 128, 19]
    assert [spec.num_visible for spec in specs] == [98, 118, 98, 128, 45]
    assert [spec.num_predicted for spec in specs] == [98, 78, 176, 256, 38]
    tiny = MaskSpec(2, MaskConfig("random", 0.01))
    assert (tiny.num_dropped, tiny.num_visible) == (1, 3)
    assert MaskSpec(2, MaskConfig("random", 1.0)).num_visible == 1


def test_block_masks_hide_exactly_their_share_and_favour_no_side():
    masks = draw(SPECS["block"], range(1000)).mask_BN
    assert (masks.sum(1) == 78).all()
    rates = masks.float().mean(0).view(14, 14)
    assert rates.min() > 0.01
    for other in (rates.flip(0), rates.flip(1), rates.T):
        assert (rates - other).abs().max() < 0.08  # five standard deviations of 1000 draws


def test_block_masks_are_less_scattered_than_random_ones():
    def borders(spec):
        field = draw(spec, range(100)).mask_BN.view(100, 14, 14).int()
        return (field.diff(dim=1).abs().sum() + field.diff(dim=2).abs().sum()).item()

    random, block = MaskSpec(14, MaskConfig("random", 0.4)), MaskSpec(14, MaskConfig("block", 0.4))
    assert borders(block) < 0.6 * borders(random)
