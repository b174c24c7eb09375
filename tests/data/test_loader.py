"""Real DALI pipelines on real JPEGs, against PIL and torchvision's rules."""

import io
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from supmim_scale.cli.main import main
from supmim_scale.config.experiment import AugmentConfig
from supmim_scale.data import views
from supmim_scale.data.dali import ViewSpec, view_pipeline
from supmim_scale.data.dataset import open_dataset
from supmim_scale.data.loader import Share, ViewSettings, evaluation_batches, training_batches
from supmim_scale.data.order import SampleOrder
from supmim_scale.data.readers import SampleLayout
from supmim_scale.models.torchvision_ops import declare_missing_ops

SETTINGS = ViewSettings(ViewSpec(32, 0.5, 0.5), crop_scale=(0.3, 1.0))
EVERYTHING = replace(
    SETTINGS,
    spec=replace(
        SETTINGS.spec, augment=AugmentConfig("three_augment", color_jitter=0.3, erase_prob=0.5)
    ),
)
CPU = torch.device("cpu")


def dataset(shards, split="train"):
    return open_dataset(shards, split, SampleLayout(), num_classes=16)


def test_a_view_is_what_pil_makes_of_the_same_window(shards):
    held_out = dataset(shards, "val")
    batches = list(evaluation_batches(held_out, SETTINGS, batch=8, device=CPU))
    assert [len(batch.ids_B) for batch in batches] == [8, 8, 8, 8, 1]
    for sample, view in zip(batches[0].ids_B, batches[0].images_BCHW, strict=True):
        image = Image.open(io.BytesIO(held_out.read(int(sample)).tobytes()))
        top, left, height, width = views.centre_window(image.height, image.width, 1.0)
        window = image.crop((left, top, left + width, top + height))
        small = window.resize((32, 32), Image.Resampling.BILINEAR)
        expected = torch.from_numpy(np.array(small)).permute(2, 0, 1) / 127.5 - 1
        levels = (view - expected).abs() * 127.5
        # Rounding inside; at the window's edge chroma is upsampled from the window alone.
        assert levels[:, 2:-2, 2:-2].max() < 1.01
        assert levels.mean() < 0.3


def test_a_training_view_is_torchvisions_resized_crop_of_the_same_window(shards):
    """Tolerance: 1 of 255 levels inside the view, 0.3 on average with its edges."""
    declare_missing_ops()
    from torchvision.transforms.functional import hflip, resized_crop

    from supmim_scale import randomness

    train = dataset(shards)
    order = SampleOrder(train.sizes, seed=3, lanes=3)
    batch = next(training_batches(train, order, SETTINGS, Share(24), seed=3, device=CPU))
    who = (batch.epochs_B, batch.ids_B)
    u_BC = randomness.uniform(randomness.CROP, 3, *who, views.DRAWS_PER_CROP)
    flips_B = randomness.uniform(randomness.FLIP, 3, *who, 1)[:, 0] < 0.5
    assert 0 < flips_B.sum() < 24
    gaps = []
    for sample, u_C, flip, view in zip(batch.ids_B, u_BC, flips_B, batch.images_BCHW, strict=True):
        image = Image.open(io.BytesIO(train.read(int(sample)).tobytes()))
        window = views.random_window(image.height, image.width, (0.3, 1.0), u_C)
        small = resized_crop(image, *window, [32, 32], antialias=True)
        small = hflip(small) if flip else small
        expected = torch.from_numpy(np.array(small)).permute(2, 0, 1) / 127.5 - 1
        gaps.append((view - expected).abs() * 127.5)
    levels = torch.stack(gaps)
    assert levels[:, :, 2:-2, 2:-2].max() < 1.01
    assert levels.mean() < 0.3


def test_views_are_cut_as_torchvision_cuts_them_unless_told_otherwise():
    """The defaults of RandomResizedCrop, and the whole shorter side in evaluation."""
    settings = ViewSettings(ViewSpec(32, 0.5, 0.5))
    assert (settings.crop_scale, settings.flip, settings.eval_crop) == ((0.08, 1.0), True, 1.0)
    assert views.centre_window(60, 81, 0.875) == (4, 14, 52, 52)
    assert views.centre_window(1, 1, 0.1) == (0, 0, 1, 1)


def test_exif_orientation_is_left_alone_as_in_pil(tmp_path):
    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees on display
    pixels = np.zeros((40, 64, 3), np.uint8)
    pixels[:, :32] = 255
    Image.fromarray(pixels).save(folder / "x.jpg", exif=exif, quality=95)
    assert main(["data", "pack", str(tmp_path / "images"), str(tmp_path / "out/train")]) == 0
    packed = open_dataset(tmp_path / "out", "train", SampleLayout())
    (batch,) = evaluation_batches(packed, SETTINGS, batch=1, device=CPU)
    left, right = batch.images_BCHW[0, :, :, 2].mean(), batch.images_BCHW[0, :, :, -3].mean()
    assert left > 0.9
    assert right < -0.9


def steps(shards, ranks, accumulation=1, count=4, first=0, settings=EVERYTHING, batch=24, group=1):
    """(views, labels) by sample id of some global batches, a dict a step."""
    train = dataset(shards)
    order = SampleOrder(train.sizes, seed=3, lanes=2)
    loaders = [
        training_batches(
            train,
            order,
            settings,
            Share(batch // ranks // accumulation, accumulation, r, ranks),
            seed=3,
            device=CPU,
            samples_seen=first * batch,
            group=group,
        )
        for r in range(ranks)
    ]
    found = []
    for _ in range(count):
        parts = [next(loader) for loader in loaders for _ in range(accumulation)]
        ids = np.concatenate([p.ids_B for p in parts])
        assert len(ids) == batch
        shown = zip(
            torch.cat([p.images_BCHW for p in parts]),
            torch.cat([p.labels_BL for p in parts]),
            strict=True,
        )
        epochs = np.concatenate([p.epochs_B for p in parts])
        found.append(dict(zip(zip(epochs.tolist(), ids.tolist(), strict=True), shown, strict=True)))
    return found


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key][0], b[key][0])
        assert torch.equal(a[key][1], b[key][1])


@pytest.mark.parametrize(("ranks", "accumulation"), [(2, 1), (3, 1), (2, 4)])
@pytest.mark.parametrize("group", [1, 2])
def test_the_global_batch_is_the_same_for_every_split(shards, ranks, accumulation, group):
    """Bit for bit, with augmentation, and over an epoch's end."""
    whole = steps(shards, 1, count=5, group=group)
    split = steps(shards, ranks, accumulation, count=5, group=group)
    for a, b in zip(whole, split, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_later_start_continues_the_same_sequence_bit_for_bit(shards, ranks):
    whole = steps(shards, 1, count=6)
    tail = steps(shards, ranks, count=2, first=4)
    for a, b in zip(whole[4:], tail, strict=True):
        assert_same(a, b)


def test_rand_augment_is_the_same_for_every_split(shards):
    spec = replace(SETTINGS.spec, augment=AugmentConfig("rand_augment", magnitude_std=0.1))
    settings = replace(SETTINGS, spec=spec)
    (whole,) = steps(shards, 1, count=1, settings=settings)
    (split,) = steps(shards, 2, count=1, settings=settings)
    assert_same(whole, split)


def test_an_epoch_shows_every_sample_once_and_the_next_in_another_order(shards):
    keys = [list(step) for step in steps(shards, 1, count=8, settings=SETTINGS)]
    ids = [sample for step in keys for _, sample in step]
    assert sorted(ids[:96]) == sorted(ids[96:]) == list(range(96))
    assert ids[:96] != ids[96:]


def test_labels_are_those_in_the_tar(shards):
    train = dataset(shards)
    with tarfile.open(shards / "train/train-000001.tar") as tar:
        for member in tar:
            if member.name.endswith(".cls"):
                number = int(member.name.split("-")[1].split(".")[0])
                expected = int(tar.extractfile(member).read())
                assert train.labels_of(number).tolist() == [expected]


def test_random_windows_follow_torchvisions_statistics():
    """Mean area share of RandomResizedCrop(scale=(0.08, 1)) on 500 x 375, 20,000 draws each."""
    declare_missing_ops()
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    image = torch.empty(3, 375, 500)
    theirs = [
        RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3))[2:] for _ in range(20000)
    ]
    rng = np.random.default_rng(0)
    draws = rng.uniform(size=(20000, views.DRAWS_PER_CROP))
    ours = [views.random_window(375, 500, (0.08, 1.0), u)[2:] for u in draws]
    for statistic in (
        lambda hw: np.prod(hw, axis=1).mean() / (375 * 500),
        lambda hw: np.log(hw[:, 1] / hw[:, 0]).mean(),
        lambda hw: np.log(hw[:, 1] / hw[:, 0]).std(),
    ):
        assert statistic(np.array(ours)) == pytest.approx(statistic(np.array(theirs)), abs=0.01)


@pytest.mark.parametrize("kind", ["none", "rand_augment", "trivial_augment", "three_augment"])
def test_the_gpu_pipeline_is_well_formed(kind):
    """Argument names and device flow are checked at serialisation, without a GPU."""
    augment = AugmentConfig(kind, color_jitter=0.3, erase_prob=0.5)
    spec = ViewSpec(32, 0.5, 0.5, decoder="mixed", augment=augment)
    pipeline = view_pipeline(lambda: None, spec, batch_size=2, num_threads=1, device_id=None)
    assert pipeline.serialize()


def test_synthetic_images_are_functions_of_their_number(tmp_path):
    for name in ("a", "b"):
        assert (
            main(
                [
                    "data",
                    "synth",
                    str(tmp_path / name),
                    "--train",
                    "8",
                    "--val",
                    "2",
                    "--shard-size",
                    "4",
                    "--size",
                    "64x48",
                    "--workers",
                    "1",
                ]
            )
            == 0
        )
    a, b = ((tmp_path / name / "train/train-000001.tar").read_bytes() for name in ("a", "b"))
    assert a == b


def test_another_synthetic_set_does_not_mix_into_an_old_one(tmp_path, capsys):
    make = ["data", "synth", str(tmp_path), "--train", "2", "--val", "1", "--workers", "1"]
    assert main(make) == 0
    assert main(make) == 0
    assert main([*make, "--seed", "1"]) == 2
    assert "another folder" in capsys.readouterr().err
