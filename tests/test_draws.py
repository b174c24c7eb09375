"""Every stream of draws changes with the seed alone, with the epoch alone, and with the sample
alone, and comes again where all three are the same."""

import hashlib
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from eval_fixture import features_of, write_set
from PIL import Image

from supmim_scale import randomness
from supmim_scale.build.model import recipe_model
from supmim_scale.config import load_config
from supmim_scale.config.experiment import AugmentConfig, MaskConfig
from supmim_scale.data.augment import draw_augmentations
from supmim_scale.data.dali import ViewSpec
from supmim_scale.data.dataset import open_dataset
from supmim_scale.data.loader import Share, ViewSettings, training_batches
from supmim_scale.data.mixing import draw_mix
from supmim_scale.data.order import SampleOrder
from supmim_scale.data.quarantine import Quarantine, SkipRule
from supmim_scale.data.readers import SampleLayout
from supmim_scale.data.shards import write_shard
from supmim_scale.data.synth import SynthSpec, write_synthetic
from supmim_scale.data.views import DRAWS_PER_CROP, random_window
from supmim_scale.evaluation.few_shot import draw_shots
from supmim_scale.evaluation.segment import _crop
from supmim_scale.evaluation.segment_sets import open_masks
from supmim_scale.models.masking import MaskSpec, draw_masks
from supmim_scale.models.targets import fit_codebook
from supmim_scale.scaling.bootstrap import bootstrap
from supmim_scale.scaling.fit import fit_law
from supmim_scale.scaling.laws import LAWS

CPU = torch.device("cpu")
IDS, EPOCHS, SEEDS = np.arange(8), 2, 2


def by_masks(spec, part):
    def draw(seed, epoch):
        return getattr(draw_masks(spec, seed, np.full_like(IDS, epoch), IDS), part).float().numpy()

    return draw


def counts_of(spec):
    return lambda seed, epoch: by_masks(spec, "mask_BN")(seed, epoch).sum(1)


def by_mixing(settings, part):
    def draw(seed, epoch):
        mix = draw_mix(settings, 64, seed, np.full_like(IDS, epoch), IDS, CPU)
        return getattr(mix, part).numpy()

    return draw


def kinds_of_mixing(seed, epoch):
    boxes = by_mixing(AugmentConfig(mixup_alpha=0.8, cutmix_alpha=1.0), "boxes_B4")(seed, epoch)
    return boxes[:, 2] > 0


def by_augmenting(name, **settings):
    def draw(seed, epoch):
        found = draw_augmentations(
            AugmentConfig(**settings), 14, 64, seed, np.full_like(IDS, epoch), IDS
        )
        return found[name]

    return draw


RAND = {"kind": "rand_augment", "magnitude_std": 0.2}
BLOCK = MaskSpec(14, MaskConfig("block", 0.4))
DRAWN = {
    "random masks": by_masks(MaskSpec(14, MaskConfig("random", 0.5)), "mask_BN"),
    "patches that may be dropped": by_masks(MaskSpec(14, MaskConfig("random", 0.5)), "keep_BV"),
    "block masks": by_masks(BLOCK, "mask_BN"),
    "order inside block masks": by_masks(BLOCK, "masked_BM"),
    "uniform mask ratios": counts_of(MaskSpec(14, MaskConfig("random", 0.3, 0.9))),
    "Gaussian mask ratios": counts_of(MaskSpec(14, MaskConfig("random", 0.5, 1.0, 0.55))),
    "mask ratios of blocks": counts_of(MaskSpec(14, MaskConfig("block", 0.3, 0.6))),
    "shares of mixup": by_mixing(AugmentConfig(mixup_alpha=0.8), "own_B"),
    "boxes of cutmix": by_mixing(AugmentConfig(cutmix_alpha=1.0), "boxes_B4"),
    "mixup or cutmix": kinds_of_mixing,
    "operations": by_augmenting("ops", **RAND),
    "magnitudes": by_augmenting("magnitudes", **RAND),
    "signs": by_augmenting("signs", **RAND),
    "magnitudes of trivial_augment": by_augmenting("magnitudes", kind="trivial_augment"),
    "operations of three_augment": by_augmenting("ops", kind="three_augment"),
    "blur": by_augmenting("sigmas", kind="three_augment"),
    "jitter": by_augmenting("jitters", color_jitter=0.3),
    "erased shapes": by_augmenting("erase_shapes", erase_prob=0.5),
    "erased places": by_augmenting("erase_anchors", erase_prob=1.0),
}
PLAIN = ViewSettings(ViewSpec(32, 0.5, 0.5), crop_scale=(1.0, 1.0), flip=False)


def augmented(**settings):
    return replace(PLAIN, spec=replace(PLAIN.spec, augment=AugmentConfig(**settings)))


SEEN = {
    "crop": replace(PLAIN, crop_scale=(0.2, 0.8)),
    "flip": replace(PLAIN, flip=True),
    "three_augment": augmented(kind="three_augment"),
    "jitter": augmented(color_jitter=0.5),
    "erase": augmented(erase_prob=0.7),
}


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """Eight samples of one square picture: whatever differs between views was drawn."""
    root = tmp_path_factory.mktemp("alike")
    (root / "train").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((48, 48), Image.Resampling.BICUBIC).save(buffer, "PNG")
    samples = ((f"{i}", buffer.getvalue(), "png", "0") for i in range(len(IDS)))
    write_shard(root / "train/x.tar", samples)
    return open_dataset(root, "train", SampleLayout())


def views(dataset, settings, seed):
    """(epochs, samples, C, H, W), as the loader shows them."""
    order = SampleOrder(dataset.sizes, seed=7, lanes=1)
    batches = training_batches(dataset, order, settings, Share(len(IDS)), seed=seed, device=CPU)
    shown = np.empty((EPOCHS, len(IDS), 3, 32, 32), dtype=np.float32)
    for epoch in range(EPOCHS):
        batch = next(batches)
        assert (batch.epochs_B == epoch).all()
        shown[epoch, batch.ids_B] = batch.images_BCHW.numpy()
    batches.close()
    return shown


def assert_each_matters(table):
    """Of (seeds, epochs, samples, ...)."""
    for axis, what in enumerate(("seed", "epoch", "sample")):
        first, second = table.take(0, axis), table.take(1, axis)
        assert (first != second).any(), f"the {what} alone changes nothing"
    ids = table.reshape(SEEDS * EPOCHS, len(IDS), -1)
    assert (ids[:, 1:] != ids[:, :1]).any(), "all samples are alike"


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_a_draw_belongs_to_the_seed_the_epoch_and_the_sample(draw):
    table = np.array([[draw(seed, epoch) for epoch in range(EPOCHS)] for seed in range(SEEDS)])
    assert_each_matters(table)
    assert np.array_equal(draw(1, 1), table[1, 1])


def first_order(lanes):
    return lambda seed, epoch: SampleOrder(np.array([5, 9, 6, 4]), seed, lanes).at(24 * epoch, 24)[
        1
    ]


def crop_windows(seed, epoch):
    u_BC = randomness.uniform(randomness.CROP, seed, np.full_like(IDS, epoch), IDS, DRAWS_PER_CROP)
    return np.array([random_window(375, 500, (0.08, 1.0), u_C) for u_C in u_BC])


KEPT = {**DRAWN, "order": first_order(1), "order by lanes": first_order(3), "crops": crop_windows}
DIGESTS = {
    "random masks": "95abab9c22c0",
    "patches that may be dropped": "6e6bbb4fb5dc",
    "block masks": "2a4cac34c352",
    "order inside block masks": "24587ffd36e8",
    "uniform mask ratios": "06fea94c959b",
    "Gaussian mask ratios": "5ae9d7e3b90e",
    "mask ratios of blocks": "e07239de2fc0",
    "shares of mixup": "dae76e5fce42",
    "boxes of cutmix": "0b45d30aac98",
    "mixup or cutmix": "26929237ffb5",
    "operations": "8070630604cf",
    "magnitudes": "ed6c63a267c9",
    "signs": "edac3bc906e0",
    "magnitudes of trivial_augment": "d2a097529aba",
    "operations of three_augment": "f7a34faf5610",
    "blur": "07c6ef1f3c17",
    "jitter": "2313c44e57db",
    "erased shapes": "5793cba05160",
    "erased places": "c95f17adc7f8",
    "order": "85f668b1557c",
    "order by lanes": "fdb1b099f2bc",
    "crops": "a98144f5184c",
}


@pytest.mark.parametrize("name", KEPT)
def test_a_run_that_goes_on_under_a_later_version_draws_what_it_would_have_drawn(name):
    """Digests of what was drawn when this test was written, floats to four places."""
    table = np.array([[KEPT[name](seed, epoch) for epoch in range(2)] for seed in range(3)])
    whole = np.rint(table.astype(np.float64) * 1e4).astype(np.int64)
    assert hashlib.sha256(whole.tobytes()).hexdigest()[:12] == DIGESTS[name]


@pytest.mark.parametrize("settings", SEEN.values(), ids=SEEN)
def test_a_view_belongs_to_the_seed_the_epoch_and_the_sample(alike, settings):
    table = np.array([views(alike, settings, seed) for seed in range(SEEDS)])
    assert_each_matters(table)
    assert np.array_equal(views(alike, settings, 1), table[1])


def test_without_draws_all_views_are_alike(alike):
    """Else the tests of single streams would see something else."""
    shown = np.array([views(alike, PLAIN, seed) for seed in range(SEEDS)]).reshape(-1, 3, 32, 32)
    assert (shown == shown[:1]).all()


@pytest.mark.parametrize("sizes", [[1] * 24, [24]], ids=["of shards", "inside a shard"])
def test_the_order_belongs_to_the_seed_and_the_epoch(sizes):
    def order(seed):
        return SampleOrder(np.array(sizes), seed, lanes=1).at(0, 48)[1].reshape(2, 24)

    first, second = order(0), order(1)
    assert (first != second).any(axis=1).all()
    assert (first[0] != first[1]).any()
    assert np.array_equal(order(0), first)


def test_shards_of_one_size_are_not_shuffled_alike():
    ids = SampleOrder(np.array([12, 12]), 0, lanes=1).at(0, 24)[1].reshape(2, 12)
    assert (ids[0] % 12 != ids[1] % 12).any()


def test_a_replacement_belongs_to_the_seed_the_epoch_and_the_sample(alike):
    """Five of eight are bad; what is shown in the place of each."""

    def shown(seed):
        order, policy = SampleOrder(alike.sizes, seed=7, lanes=1), SkipRule(True, 1.0)
        batches = training_batches(
            alike,
            order,
            PLAIN,
            Share(len(IDS)),
            seed=seed,
            device=CPU,
            quarantine=Quarantine(policy, len(alike)),
            known_bad=range(5),
        )
        found = np.empty((6, len(IDS)), dtype=np.int64)
        for epoch in range(6):
            _, wanted = order.at(epoch * len(IDS), len(IDS))
            found[epoch, wanted] = next(batches).ids_B
        batches.close()
        return found

    first, second = shown(0), shown(1)
    assert (first[:, 5:] == [5, 6, 7]).all()
    assert set(first[:, :5].ravel().tolist()) == {5, 6, 7}
    assert (first != second).any()
    assert (first[1:] != first[0]).any(), "every epoch the same"
    assert (first[:, 1:5] != first[:, :1]).any(), "every sample the same"
    assert np.array_equal(shown(0), first)


def test_a_crop_of_segmentation_belongs_to_the_step_and_its_place(tmp_path):
    train = open_masks(write_set(tmp_path / "voc", "voc"), "train", 3)
    crops = [_crop(32, train, step, place)[0] for step in range(3) for place in range(3)]
    pairs = [(a, b) for a in range(9) for b in range(a)]
    assert not any(torch.equal(crops[a], crops[b]) for a, b in pairs)
    assert torch.equal(_crop(32, train, 2, 2)[0], crops[8])


OF_A_SEED = {
    "weights": lambda seed: (
        recipe_model(load_config("smoke", [f"seed={seed}", "model.width=32", "model.heads=2"]), 16)
        .encoder.head.weight.detach()
        .numpy()
    ),
    "codebook": lambda seed: fit_codebook(
        torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), 8, 8, seed
    ).centres_PV.numpy(),
    "few-shot": lambda seed: draw_shots(features_of(60, seed=0).labels_NL, 5, seed),
    "drop path": lambda seed: np.array(randomness.torch_seed(seed, 1, 2, 3)),
}


@pytest.mark.parametrize("draw", OF_A_SEED.values(), ids=OF_A_SEED)
def test_what_is_drawn_once_belongs_to_the_seed(draw):
    assert (draw(0) != draw(1)).any()
    assert np.array_equal(draw(0), draw(0))


def test_starts_and_replicates_of_a_fit_belong_to_its_seed():
    from supmim_scale.scaling.points import make_points

    compute = np.geomspace(1e15, 1e19, 12)
    noise = np.exp(0.01 * np.random.default_rng(0).normal(size=12))
    points = make_points(30 * compute**-0.1 * noise, compute=compute)
    fit = fit_law(LAWS["power"], points, starts=4)
    first, again, other = (bootstrap(fit, 6, seed=seed).thetas for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert (first != other).any()
    assert len(np.unique(first[:, 0])) > 1


def test_synthetic_images_belong_to_the_seed_the_split_and_their_number(tmp_path):
    sets = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        spec = SynthSpec(num_train=2, num_val=2, shard_size=2, width=24, height=24, seed=seed)
        write_synthetic(tmp_path / name, spec, workers=1)
        for split in ("train", "val"):
            opened = open_dataset(tmp_path / name, split, SampleLayout(), num_classes=16)
            sets.append([opened.read(i).tobytes() for i in range(2)])
    assert sets[0] == sets[2]
    assert sets[1] == sets[3]
    images = {image for kept in (*sets[:2], *sets[4:]) for image in kept}
    assert len(images) == 8


def test_streams_of_one_seed_are_apart():
    names = [
        "CROP",
        "FLIP",
        "MASK",
        "ORDER",
        "FORWARD",
        "REPLACE",
        "POLICY",
        "BLUR",
        "JITTER",
        "ERASE",
        "MIX",
    ]
    streams = [getattr(randomness, name) for name in names]
    found = {randomness.bits(stream, 0, 0, 0).item() for stream in streams}
    assert len(found) == len(streams)


def test_uniform_draws_fill_the_unit_interval_evenly():
    epochs, ids = np.zeros(4000, dtype=np.int64), np.arange(4000)
    u_BC = randomness.uniform(randomness.CROP, 0, epochs, ids, 3)
    assert 0 <= u_BC.min() < 0.001
    assert 0.999 < u_BC.max() < 1
    assert np.quantile(u_BC, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.02)
    assert abs(np.corrcoef(u_BC.T)[0, 1]) < 0.05


def test_the_drawn_bits_are_splitmix64s():
    """Its first outputs from state 1234567, as published with the generator."""
    state, outputs = 1234567, []
    for _ in range(3):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        outputs.append(int(randomness._mix(np.array([state], dtype=np.uint64))[0]))
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]
