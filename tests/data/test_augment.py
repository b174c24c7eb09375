"""Augmentation: draws with the statistics that the papers give, pixels as PIL makes them."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps

from supmim_scale.config.experiment import AugmentConfig
from supmim_scale.data.augment import MAGNITUDES, draw_augmentations
from supmim_scale.data.dali import ViewPipeline, ViewSpec, num_choices
from supmim_scale.models.torchvision_ops import declare_missing_ops

IDS = np.arange(20_000)
EPOCHS = np.zeros_like(IDS)
SIZE = 64


def drawn(**settings):
    kind = settings.get("kind", "none")
    return draw_augmentations(AugmentConfig(**settings), num_choices(kind), SIZE, 0, EPOCHS, IDS)


def test_draws_are_functions_of_the_sample_alone():
    settings = AugmentConfig("rand_augment", color_jitter=0.3, erase_prob=0.5)
    whole = draw_augmentations(settings, 14, SIZE, 0, EPOCHS, IDS)
    part = draw_augmentations(settings, 14, SIZE, 0, EPOCHS[:3], IDS[[5, 17, 4]])
    for name, values in part.items():
        assert (values == whole[name][[5, 17, 4]]).all()
    other = draw_augmentations(settings, 14, SIZE, 0, EPOCHS + 1, IDS)
    assert (other["ops"] != whole["ops"]).any()


def test_rand_augment_draws_operations_evenly_at_the_given_strength():
    found = drawn(kind="rand_augment", num_ops=3, magnitude=0.3, magnitude_std=0.05)
    assert found["ops"].shape == (20_000, 3)
    shares = np.bincount(found["ops"].ravel()) / found["ops"].size
    assert shares == pytest.approx(1 / num_choices("rand_augment"), rel=0.1)
    steps = found["magnitudes"] / (MAGNITUDES - 1)
    assert steps.mean() == pytest.approx(0.3, abs=0.002)
    assert steps.std() == pytest.approx(0.05, abs=0.005)
    assert found["signs"].mean() == pytest.approx(0.5, abs=0.01)


def test_trivial_augment_draws_one_operation_at_any_strength():
    found = drawn(kind="trivial_augment")
    assert found["ops"].shape == (20_000, 1)
    shares = np.bincount(found["magnitudes"].ravel(), minlength=MAGNITUDES) / 20_000
    assert shares == pytest.approx(1 / MAGNITUDES, rel=0.15)


def test_operations_have_as_many_strengths_as_torchvisions():
    import inspect

    declare_missing_ops()
    from torchvision.transforms import RandAugment, TrivialAugmentWide

    for theirs in (RandAugment, TrivialAugmentWide):
        bins = inspect.signature(theirs).parameters["num_magnitude_bins"].default
        assert bins == MAGNITUDES


def test_three_augment_takes_each_of_three_as_often():
    found = drawn(kind="three_augment")
    assert np.bincount(found["ops"].ravel()) / 20_000 == pytest.approx(1 / 3, abs=0.01)
    assert (found["sigmas"].min(), found["sigmas"].max()) == pytest.approx((0.1, 2.0), abs=0.01)


def test_erasing_has_torchvisions_statistics():
    declare_missing_ops()
    from torchvision.transforms import RandomErasing

    torch.manual_seed(0)
    image = torch.empty(3, SIZE, SIZE)
    theirs = [
        RandomErasing.get_params(image, (0.02, 1 / 3), (0.3, 1 / 0.3), [0.0])[2:4]
        for _ in range(5000)
    ]
    boxes = drawn(erase_prob=0.25)["erase_shapes"]
    areas = boxes.prod(axis=1)
    assert (areas > 0).mean() == pytest.approx(0.25, abs=0.01)
    assert areas[areas > 0].mean() == pytest.approx(np.prod(theirs, axis=1).mean(), rel=0.03)


def test_jitter_goes_to_both_sides_alike_in_each_of_its_factors():
    found = drawn(color_jitter=0.3)["jitters"]
    assert found.shape == (20_000, 3)
    for factors in found.T:
        assert (factors.min(), factors.max()) == pytest.approx((0.7, 1.3), abs=0.001)
        quarters = np.quantile(factors, [0.25, 0.5, 0.75])
        assert quarters == pytest.approx([0.85, 1, 1.15], abs=0.01)
    assert abs(np.corrcoef(found.T) - np.eye(3)).max() < 0.03


def test_blur_and_erased_places_fill_their_ranges_evenly():
    sigmas = drawn(kind="three_augment")["sigmas"]
    assert np.quantile(sigmas, [0.25, 0.5, 0.75]) == pytest.approx([0.575, 1.05, 1.525], abs=0.03)
    found = drawn(erase_prob=1.0)
    left = SIZE - found["erase_shapes"]
    assert (found["erase_anchors"] <= left).all()
    shares = found["erase_anchors"] / left
    assert shares.mean(axis=0) == pytest.approx([0.5, 0.5], abs=0.02)
    assert (found["erase_anchors"] == left).any(axis=0).all()  # the last place is one of them
    areas = found["erase_shapes"].prod(axis=1) / SIZE**2
    assert np.quantile(areas, [0.01, 0.99]) == pytest.approx([0.02, 0.33], abs=0.01)


def picture():
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return smooth.resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def through_dali(augment, **inputs):
    """The picture as 0-255 levels (H, W, 3) after given draws."""
    encoded = io.BytesIO()
    picture().save(encoded, "PNG")
    given = {
        "encoded": [np.frombuffer(encoded.getvalue(), np.uint8)],
        "anchors": np.zeros((1, 2), np.int32),
        "shapes": np.full((1, 2), SIZE, np.int32),
        "flips": np.zeros(1, np.int32),
        **{name: np.array([value]) for name, value in inputs.items()},
    }
    spec = ViewSpec(SIZE, 0.5, 0.5, augment=augment)
    pipeline = ViewPipeline(
        lambda: tuple(given[name] for name in spec.inputs),
        spec,
        batch=1,
        threads=1,
        prefetch=1,
        device=torch.device("cpu"),
    )
    return (pipeline.next()[0].permute(1, 2, 0).numpy() + 1) * 127.5


@pytest.mark.parametrize(
    ("op", "expected", "tolerance"),
    [
        (0, lambda image: image.convert("L").convert("RGB"), 1.01),
        (1, lambda image: ImageOps.solarize(image, 128), 0.01),
        (2, lambda image: image.filter(ImageFilter.GaussianBlur(1.5)), 3),
    ],
    ids=["greyscale", "solarise", "blur"],
)
def test_three_augment_does_what_pil_does(op, expected, tolerance):
    """Tolerance in levels of 255; PIL's blur is three box blurs."""
    found = through_dali(
        AugmentConfig("three_augment"), ops=np.array([op], np.int32), sigmas=np.float32(1.5)
    )
    inner = (slice(4, -4), slice(4, -4))
    assert abs(found - np.array(expected(picture())))[inner].max() < tolerance


def test_rand_augment_at_strength_zero_changes_little_and_at_one_much():
    """Posterise, solarise and the rest are DALI's own; the strength must reach them."""
    plain = np.array(picture())
    names = {"weak": 0, "strong": MAGNITUDES - 1}
    gaps = {}
    for name, step in names.items():
        found = [
            through_dali(
                AugmentConfig("rand_augment", num_ops=1),
                ops=np.array([op], np.int32),
                magnitudes=np.array([step], np.int32),
                signs=np.array([1], np.int32),
            )
            for op in (2, 4, 5, 9, 10)
        ]
        gaps[name] = [abs(view - plain).mean() for view in found]
    assert max(gaps["weak"]) < 1
    assert min(gaps["strong"]) > 5


def test_erasing_sets_a_box_to_the_mean():
    box = {"erase_anchors": np.float32([8, 16]), "erase_shapes": np.float32([20, 30])}
    found = through_dali(AugmentConfig(erase_prob=1.0), **box)
    expected = np.array(picture(), dtype=np.float64)
    expected[8:28, 16:46] = 127.5
    assert abs(found - expected).max() < 0.01


def test_jitter_changes_brightness_contrast_and_saturation_to_either_side():
    plain = np.array(picture(), dtype=np.float64)

    def figures(image):
        return image.mean(), image.std(), (image.max(axis=2) - image.min(axis=2)).mean()

    def jittered(*factors):
        jitter = AugmentConfig(color_jitter=0.3)
        return figures(through_dali(jitter, jitters=np.float32(factors)))

    for place in range(3):
        less, more = ([1.0 if i != place else x for i in range(3)] for x in (0.7, 1.3))
        assert jittered(*less)[place] < figures(plain)[place] < jittered(*more)[place]


def test_jitter_by_factors_of_one_changes_nothing():
    found = through_dali(AugmentConfig(color_jitter=0.3), jitters=np.ones(3, np.float32))
    assert abs(found - np.array(picture())).max() < 1.01
