"""Real DALI pipelines on real JPEGs, against PIL and torchvision's rules."""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from supmim_scale.cli import main
from supmim_scale.data import views
from supmim_scale.data.dataset import open_dataset
from supmim_scale.data.loader import ViewSettings, evaluation_batches, training_batches
from supmim_scale.data.order import SampleOrder
from supmim_scale.data.shards import write_shard
from supmim_scale.errors import RankError
from supmim_scale.models.torchvision_ops import declare_missing_ops

SETTINGS = ViewSettings(32, 0.5, 0.5, (0.3, 1.0), True, 1.0, "cpu", 0.65, 2, 2)
CPU = torch.device("cpu")


def dataset(shards, split="train"):
    return open_dataset(shards, split, split, None, 16, single_label=True)


def test_a_view_is_what_pil_makes_of_the_same_window(shards):
    held_out = dataset(shards, "val")
    batches = list(
        evaluation_batches(held_out, SETTINGS, batch=8, rank=0, world_size=1, device=CPU)
    )
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


def test_exif_orientation_is_left_alone_as_in_pil(tmp_path):
    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees on display
    pixels = np.zeros((40, 64, 3), np.uint8)
    pixels[:, :32] = 255
    Image.fromarray(pixels).save(folder / "x.jpg", exif=exif, quality=95)
    assert main(["data", "pack", str(tmp_path / "images"), str(tmp_path / "out/train")]) == 0
    packed = open_dataset(tmp_path / "out", "train", "train", None, 1, single_label=True)
    (batch,) = evaluation_batches(packed, SETTINGS, batch=1, rank=0, world_size=1, device=CPU)
    left, right = batch.images_BCHW[0, :, :, 2].mean(), batch.images_BCHW[0, :, :, -3].mean()
    assert left > 0.9
    assert right < -0.9


def take(shards, ranks, micro, accumulation, steps=4, first_step=0):
    """The global batches of some steps, in order."""
    train = dataset(shards)
    order = SampleOrder(train.sizes, seed=3, window=2)
    loaders = [
        training_batches(
            train, order, SETTINGS, seed=3, micro_batch=micro, accumulation=accumulation,
            rank=rank, world_size=ranks, first_step=first_step, device=CPU,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    parts = [next(loader) for _ in range(steps * accumulation) for loader in loaders]
    return (torch.cat([p.images_BCHW for p in parts]), torch.cat([p.labels_BL for p in parts]),
            np.concatenate([p.ids_B for p in parts]))  # fmt: skip


@pytest.mark.parametrize(("ranks", "micro", "accumulation"), [(2, 12, 1), (3, 8, 1), (2, 3, 4)])
def test_the_global_batch_is_the_same_for_every_split(shards, ranks, micro, accumulation):
    images, labels, ids = take(shards, 1, 24, 1)
    images_, labels_, ids_ = take(shards, ranks, micro, accumulation)
    assert torch.equal(images, images_)
    assert torch.equal(labels, labels_)
    assert (ids == ids_).all()


def test_a_later_start_continues_the_same_sequence(shards):
    whole, _, _ = take(shards, 1, 24, 1, steps=6)
    tail, _, _ = take(shards, 1, 24, 1, steps=2, first_step=4)
    assert torch.equal(whole[-48:], tail)


def test_an_epoch_shows_every_sample_once_and_the_next_in_another_order(shards):
    _, _, ids = take(shards, 1, 24, 1, steps=8)
    assert sorted(ids[:96]) == sorted(ids[96:]) == list(range(96))
    assert (ids[:96] != ids[96:]).any()


def test_labels_are_those_in_the_tar(shards):
    train = dataset(shards)
    with tarfile.open(shards / "train/train-000001.tar") as tar:
        for member in tar:
            if member.name.endswith(".cls"):
                number = int(member.name.split("-")[1].split(".")[0])
                expected = int(tar.extractfile(member).read())
                assert train.labels(np.array([number])).tolist() == [[expected]]


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


def test_pack_takes_a_folder_a_class_and_a_csv(tmp_path, shards):
    train = dataset(shards)
    rows = ["path,label"]
    for number in range(6):
        folder = tmp_path / "tree" / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(train.read(number).tobytes())
        rows.append(f"tree/class{number % 3}/{number}.jpg,{number % 3}")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    for source in ("tree", "list.csv"):
        out = tmp_path / f"from_{source}"
        assert main(["data", "pack", str(tmp_path / source), str(out / "train"),
                     "--shard-size", "4"]) == 0  # fmt: skip
        packed = open_dataset(out, "train", "train", None, 3, single_label=True)
        assert packed.sizes.tolist() == [4, 2]
        found = {
            (packed.read(i).tobytes(), int(packed.labels(np.array([i]))[0, 0])) for i in range(6)
        }
        assert found == {(train.read(i).tobytes(), i % 3) for i in range(6)}


def test_pack_refuses_a_missing_file_before_writing(tmp_path, capsys):
    (tmp_path / "list.csv").write_text("path,label\nnone.jpg,0\n")
    assert main(["data", "pack", str(tmp_path / "list.csv"), str(tmp_path / "out")]) == 2
    assert "line 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[: len(data) // 2], lambda data: data[:-2], lambda data: b"no image", bytes],
    ids=["cut in half", "end marker gone", "text", "empty"],
)
def test_a_sample_that_cannot_be_decoded_is_named(tmp_path, shards, damage):
    whole = dataset(shards)
    images = [whole.read(i).tobytes() for i in range(8)]
    images[5] = b"" if damage is bytes else damage(images[5])
    (tmp_path / "train").mkdir()
    samples = ((f"{i}", data, "jpg", "0") for i, data in enumerate(images))
    write_shard(tmp_path / "train/x.tar", samples)
    bad = dataset(tmp_path)
    batches = evaluation_batches(bad, SETTINGS, batch=4, rank=0, world_size=1, device=CPU)
    with pytest.raises(RankError, match=r"x\.tar, sample 5"):
        list(batches)


def test_the_gpu_pipeline_is_well_formed():
    """Argument names and device flow are checked at serialisation, without a GPU."""
    from supmim_scale.data.dali import view_pipeline

    pipeline = view_pipeline(
        lambda: None, "mixed", 0.65, 32, 0.5, 0.5, batch_size=2, num_threads=1, device_id=None
    )
    assert pipeline.serialize()


def test_synthetic_images_are_functions_of_their_number(tmp_path):
    for name in ("a", "b"):
        assert main(["data", "synth", str(tmp_path / name), "--train", "8", "--val", "2",
                     "--shard-size", "4", "--size", "64x48", "--workers", "1"]) == 0  # fmt: skip
    a, b = ((tmp_path / name / "train/train-000001.tar").read_bytes() for name in ("a", "b"))
    assert a == b


def test_another_synthetic_set_does_not_mix_into_an_old_one(tmp_path, capsys):
    make = ["data", "synth", str(tmp_path), "--train", "2", "--val", "1", "--workers", "1"]
    assert main(make) == 0
    assert main(make) == 0
    assert main([*make, "--seed", "1"]) == 2
    assert "another folder" in capsys.readouterr().err
