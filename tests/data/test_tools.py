"""`data pack`, `index`, `verify`, `stats`: as users type them."""

import json
import os
import signal
import subprocess
import time

import forked
import numpy as np
import pytest

from supmim_scale.cli.main import main
from supmim_scale.data.classes import load_classes, timm_lists
from supmim_scale.data.dataset import open_dataset
from supmim_scale.data.readers import SampleLayout
from supmim_scale.data.shards import write_shard
from supmim_scale.errors import UserError
from supmim_scale.files.checksums import sha256_of


def run(*arguments):
    return main([str(word) for word in arguments])


def contents(root, pattern="train", **layout):
    """Sorted (bytes, labels) of every sample."""
    dataset = open_dataset(root, pattern, SampleLayout(**layout))
    return sorted(
        (dataset.read(i).tobytes(), dataset.labels_of(i).tolist()) for i in range(len(dataset))
    )


@pytest.fixture
def photos(tmp_path, shards):
    """The same 24 images of 3 classes as a folder a class, a CSV and WebDataset shards."""
    train = open_dataset(shards, "train", SampleLayout())
    rows = ["path,label"]
    for number in range(24):
        name = f"class{number % 3}/{number}.jpg"
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(train.read(number).tobytes())
        rows.append(f"tree/{name},{number % 3}")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_pack_takes_every_kind_of_set_and_loses_nothing(photos, capsys):
    expected = contents(photos, "tree", reader="folder")
    for source, reader in [("tree", []), ("list.csv", []), ("a", [])]:
        out = photos / {"tree": "a", "list.csv": "b", "a": "c"}[source]
        options = [*reader, "--shard-size", 10, "--workers", 1]
        assert run("data", "pack", photos / source, out, *options) == 0
        assert "24 images in 3 shards" in capsys.readouterr().out
        packed = open_dataset(photos, out.name, SampleLayout())
        assert packed.sizes.tolist() == [10, 10, 4]
        assert contents(photos, out.name) == expected
        assert {len(np.unique([packed.labels_of(i)[0] for i in range(10)]))} == {3}
        subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=out, check=True)
    assert (photos / "a/classes.txt").read_text() == "class0\nclass1\nclass2\n"


def test_pack_is_the_same_whatever_the_workers_and_however_often_it_was_stopped(photos):
    tree = photos / "tree"
    assert run("data", "pack", tree, photos / "x/train", "--shard-size", 5, "--workers", 1) == 0
    for number in (1, 3):
        (photos / f"x/train/train-{number:06d}.tar").unlink()
    kept = photos / "x/train/train-000000.tar"
    stamp = kept.stat().st_mtime_ns
    assert run("data", "pack", tree, photos / "x/train", "--shard-size", 5, "--workers", 2) == 0
    assert run("data", "pack", tree, photos / "y/train", "--shard-size", 5, "--workers", 2) == 0
    assert kept.stat().st_mtime_ns == stamp
    for path in sorted((photos / "x/train").glob("*.tar")):
        assert sha256_of(path) == sha256_of(photos / "y/train" / path.name)


def test_pack_killed_at_any_moment_goes_on_and_leaves_no_half_shard(photos):
    arguments = [
        "data",
        "pack",
        photos / "tree",
        photos / "k/train",
        "--shard-size",
        1,
        "--workers",
        1,
    ]
    for _ in range(3):
        before = len(list((photos / "k/train").glob("*.tar")))
        process = forked.start(["-m", "supmim_scale", *arguments], stderr=subprocess.DEVNULL)
        deadline = time.time() + 60
        while len(list((photos / "k/train").glob("*.tar"))) < before + 3 < 24:
            assert time.time() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert run(*arguments) == 0
    assert contents(photos / "k") == contents(photos, "tree", reader="folder")


def test_pack_of_something_else_into_the_same_folder_is_refused(photos, capsys):
    assert run("data", "pack", photos / "tree", photos / "p", "--workers", 1) == 0
    assert run("data", "pack", photos / "tree", photos / "p", "--seed", 1, "--workers", 1) == 2
    assert "another folder" in capsys.readouterr().err


def test_pack_stops_at_a_bad_image_or_leaves_it_out_and_lists_it(photos, capsys):
    (photos / "tree/class1/1.jpg").write_bytes(b"no image")
    pack = ["data", "pack", photos / "tree", photos / "q", "--workers", 1, "--shard-size", 10]
    assert run(*pack) == 2
    assert "tree/class1/1.jpg: no image" in capsys.readouterr().err
    pack[3] = photos / "q2"
    assert run(*pack, "--skip-bad") == 0
    assert "23 images in 3 shards, 1 left out" in capsys.readouterr().out
    (line,) = (photos / "q2/quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "tree/class1/1.jpg"
    assert sum(open_dataset(photos, "q2", SampleLayout()).sizes) == 23


def test_pack_refuses_a_row_that_leaves_the_folder_before_writing(tmp_path, capsys):
    (tmp_path / "list.csv").write_text("path,label\n../secret.jpg,0\n")
    assert run("data", "pack", tmp_path / "list.csv", tmp_path / "out", "--workers", 1) == 2
    assert "name leaves its folder" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*.tar"))


def verify(root, *more):
    return run("data", "verify", "smoke", f"input.root={root}", "--workers", 1, *more)


def test_a_clean_set_verifies_and_a_second_time_against_its_checksums(tmp_path, shards, capsys):
    for split in ("train", "val"):
        (tmp_path / split).symlink_to(shards / split)
    for _ in range(2):
        assert verify(tmp_path) == 0
        assert "96 samples read, 0 bad, 0 odd" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "verify_train").iterdir()}
    assert names == {"quarantine.jsonl", "report.json", "SHA256SUMS"}
    assert json.loads((tmp_path / "verify_val/report.json").read_text())["clean"] is True


def test_verify_finds_flipped_bits_by_the_checksum(photos, capsys):
    assert run("data", "pack", photos / "tree", photos / "v/train", "--workers", 1) == 0
    path = photos / "v/train/train-000000.tar"
    data = bytearray(path.read_bytes())
    whole = open_dataset(photos / "v", "train", SampleLayout())
    place = data.index(whole.read(0).tobytes()) + len(whole.read(0)) // 2
    data[place] ^= 1
    path.write_bytes(data)
    assert verify(photos / "v", "--split", "train") == 1
    assert "changed: train/train-000000.tar" in capsys.readouterr().out


def test_verify_of_a_folder_finds_flipped_bits_too(photos, capsys):
    verify_tree = [
        "data",
        "verify",
        "smoke",
        f"input.root={photos}",
        "data.reader=folder",
        "data.train=tree",
        "--split",
        "train",
        "--workers",
        1,
    ]
    assert run(*verify_tree) == 0
    path = photos / "tree/class0/0.jpg"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert run(*verify_tree) == 1
    assert "changed: " in capsys.readouterr().out


def test_verify_finds_a_shard_that_its_manifest_names_and_is_gone(photos, capsys):
    pack = ["data", "pack", photos / "tree", photos / "v/train", "--shard-size", 10]
    assert run(*pack, "--workers", 1) == 0
    (photos / "v/train/train-000001.tar").unlink()
    assert verify(photos / "v", "--split", "train") == 1
    assert "gone: train/train-000001.tar" in capsys.readouterr().out


def test_verify_keeps_shards_of_one_name_apart(photos, capsys):
    for folder in "ab":
        out = photos / f"w/{folder}#1"
        pack = ["data", "pack", photos / "tree", out, "--seed", ord(folder), "--workers", 1]
        assert run(*pack) == 0
        (out / f"{out.name}-000000.tar").rename(out / "0.tar")
        (out / "SHA256SUMS").unlink()
    command = [f"input.root={photos / 'w'}", "data.train=*/0.tar", "--split", "train"]
    for _ in range(2):
        assert run("data", "verify", "smoke", *command, "--workers", 1) == 0


def test_what_verify_quarantines_training_replaces(tmp_path, shards, capsys):
    whole = open_dataset(shards, "train", SampleLayout())
    images = [whole.read(i).tobytes() for i in range(16)]
    for split, broken, wrong in (("train", images[3][:-100], "99"), ("val", images[3], "0")):
        (tmp_path / split).mkdir()
        samples = [(str(i), data, "jpg", "1") for i, data in enumerate(images)]
        samples[3], samples[15] = ("3", broken, "jpg", "1"), ("15", images[15], "jpg", wrong)
        write_shard(tmp_path / split / "x.tar", samples)
    assert verify(tmp_path, "--split", "train") == 1
    out = capsys.readouterr().out
    assert "truncated: train/x.tar: 3.jpg" in out
    assert "label 99 of 16 classes: train/x.tar: 15.jpg" in out
    listed = tmp_path / "verify_train/quarantine.jsonl"
    recipe = ["smoke", f"input.root={tmp_path}", f"input.quarantine={listed}"]
    assert run("check", *recipe) == 2
    assert "input.bad_samples=skip" in capsys.readouterr().err
    assert run("check", *recipe, "input.bad_samples=skip") == 0


def test_verify_tells_what_is_odd_and_lets_it_pass(tmp_path, capsys):
    import io

    from PIL import Image

    (tmp_path / "train").mkdir()
    images = {}
    for name, mode, kind in [
        ("cmyk", "CMYK", "JPEG"),
        ("png", "RGB", "PNG"),
        ("ok", "RGB", "JPEG"),
    ]:
        out = io.BytesIO()
        Image.new(mode, (20, 20)).save(out, kind)
        images[name] = out.getvalue()
    write_shard(tmp_path / "train/x.tar", [(k, v, "jpg", "0") for k, v in images.items()])
    assert verify(tmp_path, "--split", "train") == 0
    out = capsys.readouterr().out
    assert "odd        1  CMYK: train/x.tar: cmyk.jpg" in out
    assert "odd        1  png under another name: train/x.tar: png.jpg" in out


def test_index_counts_and_shows_what_it_leaves_out(tmp_path, capsys):
    (tmp_path / "train").mkdir()
    write_shard(tmp_path / "train/x.tar", [("a", b"x", "jpg", "3"), ("b", b"x", "jpg", None)])
    assert run("data", "index", "smoke", f"input.root={tmp_path}", "--split", "train") == 0
    out = capsys.readouterr().out
    assert "train: 1 samples in 1 files, labels up to 3, 1 left out" in out
    assert "train/x.tar: b: missing label" in out
    assert len(list(tmp_path.glob("train/x.tar.*.index"))) == 1


def test_stats_warn_where_shards_are_sorted_and_do_not_where_they_are_packed(
    tmp_path, shards, capsys
):
    whole = open_dataset(shards, "train", SampleLayout())
    (tmp_path / "train").mkdir()
    by_class = sorted(range(96), key=lambda i: whole.labels_of(i)[0])
    for number in range(4):
        part = by_class[24 * number : 24 * number + 24]
        samples = [
            (str(i), whole.read(i).tobytes(), "jpg", str(whole.labels_of(i)[0])) for i in part
        ]
        write_shard(tmp_path / f"train/{number}.tar", samples)
    stats = [
        "data",
        "stats",
        "smoke",
        f"input.root={tmp_path}",
        "--split",
        "train",
        "optim.global_batch=8",
    ]
    assert run(*stats, "data.shuffle_shards=1") == 0
    out = capsys.readouterr().out
    assert "4 of 4 shards are sorted by class" in out
    assert "data.shuffle_shards" in out
    facts = json.loads((tmp_path / "stats_train/stats.json").read_text())
    assert facts["samples"] == facts["headers_read"] == 96
    assert facts["class_mixing"] < 0.8
    assert (facts["width_median"], facts["height_median"]) == (80, 72)
    assert (tmp_path / "stats_train/stats.png").stat().st_size > 10_000
    pack = [
        "data",
        "pack",
        tmp_path / "train",
        tmp_path / "packed/train",
        "--shard-size",
        24,
        "--workers",
        1,
    ]
    assert run(*pack) == 0
    stats[3] = f"input.root={tmp_path / 'packed'}"
    capsys.readouterr()
    assert run(*stats) == 0
    assert "warning" not in capsys.readouterr().out


def test_timms_class_lists_are_read_where_they_lie():
    """21,841 classes of ImageNet-21k and 10,450 of the processed set (Ridnik et al. 2021)."""
    assert {"imagenet", "imagenet22k", "imagenet21k_miil_w21"} <= timm_lists().keys()
    assert len(load_classes("timm/imagenet22k")) == 21_841
    processed = load_classes("timm/imagenet21k_miil_w21")
    assert len(processed) == 10_450
    assert processed[0].startswith("n")


@pytest.mark.parametrize(
    ("text", "words"), [("a\nb\na\n", "1 names twice"), ("\n", "no name"), (None, "No such file")]
)
def test_a_wrong_class_list_is_refused(tmp_path, text, words):
    if text is not None:
        (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(UserError, match=words):
        load_classes(str(tmp_path / "classes.txt"))
    with pytest.raises(UserError, match="did you mean imagenet22k"):
        load_classes("timm/imagenet_22k")
