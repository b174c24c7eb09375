"""More than 200 ways in which real JPEGs, labels, tars and indexes are damaged, and what becomes
of each: it is named, nothing hangs, and no good sample is lost."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from supmim_scale.cli.main import main
from supmim_scale.data.dali import ViewSpec
from supmim_scale.data.dataset import open_dataset
from supmim_scale.data.index import IndexPlace
from supmim_scale.data.loader import Share, ViewSettings, evaluation_batches, training_batches
from supmim_scale.data.order import SampleOrder
from supmim_scale.data.quarantine import Quarantine, SkipRule, require_usable
from supmim_scale.data.readers import SampleLayout
from supmim_scale.data.shards import write_shard
from supmim_scale.errors import RankError, UserError

CPU = torch.device("cpu")
SETTINGS = ViewSettings(ViewSpec(32, 0.5, 0.5), crop_scale=(0.3, 1.0))
RNG = np.random.default_rng(0)
NUM_GOOD = 40


def photos(count):
    """Windows of two photographs as JPEGs: baseline, progressive and greyscale."""
    sources = [Image.fromarray(image) for image in load_sample_images().images]
    for number in range(count):
        left, top = RNG.integers(0, 300, 2).tolist()
        window = sources[number % 2].crop((left, top, left + 160, top + 120))
        window = window.convert("L") if number % 7 == 0 else window
        out = io.BytesIO()
        window.save(out, "JPEG", quality=85, progressive=number % 3 == 0)
        yield out.getvalue()


def scan_start(data):
    return data.index(b"\xff\xda") + 14


def flip(data, place, bit):
    return data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]


def damages():
    """(name, damaged JPEG, whether it must be found without a checksum)."""
    images = photos(150)
    for number in range(60):
        data = next(images)
        yield f"cut{number}", data[: int(RNG.integers(1, len(data) - 1))], True
    for number in range(20):
        data = next(images)
        yield f"end{number}", data[: -1 - number % 2], True
    for number in range(40):
        data = next(images)
        place = int(RNG.integers(scan_start(data), len(data) - 2))
        yield f"scan{number}", flip(data, place, number % 8), False
    for number in range(20):
        data = next(images)
        yield f"head{number}", flip(data, int(RNG.integers(2, scan_start(data))), number % 8), False
    for number in range(10):
        yield f"text{number}", b"<html>404 not found</html>" * (number + 1), True


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A root whose train/ holds 150 damaged images among good ones."""
    root = tmp_path_factory.mktemp("damaged")
    (root / "train").mkdir()
    good = [(f"good{i}", data) for i, data in enumerate(photos(NUM_GOOD))]
    found = list(damages())
    everything = good + [(name, data) for name, data, _ in found]
    everything = [everything[i] for i in RNG.permutation(len(everything))]
    for number in range(4):
        part = everything[number::4]
        write_shard(root / f"train/{number}.tar", [(k, data, "jpg", "1") for k, data in part])
    return root, {f"{name}.jpg" for name, _, is_found in found if is_found}


def test_damaged_images_are_quarantined_by_verify_and_no_good_one_is(damaged):
    root, must = damaged
    assert main(["data", "verify", "smoke", f"input.root={root}", "--split", "train"]) == 1
    lines = (root / "verify_train/quarantine.jsonl").read_text().splitlines()
    listed = {json.loads(line)["key"] for line in lines}
    assert must <= listed
    assert not [key for key in listed if key.startswith("good")]


def test_every_flipped_bit_is_found_by_its_shards_checksum(tmp_path):
    """In images, in their headers, in tar headers: a shard a flip, written whole and verified."""
    (tmp_path / "train").mkdir()
    kinds = {"scan": 40, "head": 20, "tar": 10, "none": 5}
    names = [f"{kind}{number}" for kind, count in kinds.items() for number in range(count)]
    images = dict(zip(names, photos(len(names)), strict=True))
    for name, data in images.items():
        write_shard(tmp_path / f"train/{name}.tar", [(name, data, "jpg", "1")])
    verify = [
        "data",
        "verify",
        "smoke",
        f"input.root={tmp_path}",
        "--split",
        "train",
        "--workers",
        "1",
    ]
    assert main(verify) == 0
    for name, data in images.items():
        path = tmp_path / f"train/{name}.tar"
        whole, first = path.read_bytes(), path.read_bytes().index(data)
        spans = {
            "scan": (scan_start(data), len(data)),
            "head": (2, scan_start(data)),
            "tar": (-512, -300),
        }
        span = spans.get(name.rstrip("0123456789"))
        if span:
            place = first + int(RNG.integers(*span))
            path.write_bytes(flip(whole, place, len(name) % 8))
    assert main(verify) == 1
    lines = (tmp_path / "verify_train/quarantine.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    changed = {row["source"] for row in rows if row["reason"] == "changed"}
    assert changed == {f"train/{name}.tar" for name in names if not name.startswith("none")}


def test_damaged_images_are_replaced_in_training_and_every_good_one_is_shown(damaged, tmp_path):
    root, must = damaged
    dataset = open_dataset(root, "train", SampleLayout())
    keys = [dataset.defect(i, "").key for i in range(len(dataset))]
    quarantine = Quarantine(SkipRule(True, 1.0), len(dataset), tmp_path / "q.jsonl")
    order = SampleOrder(dataset.sizes, seed=0, lanes=4)
    batches = training_batches(
        dataset, order, SETTINGS, Share(19), seed=0, device=CPU, quarantine=quarantine
    )
    shown = [keys[i] for _ in range(len(dataset) // 19) for i in next(batches).ids_B]
    assert len(shown) == len(dataset) == 190
    batches.close()
    listed = {json.loads(line)["key"] for line in (tmp_path / "q.jsonl").read_text().splitlines()}
    assert must <= listed
    assert not listed & {f"good{i}.jpg" for i in range(NUM_GOOD)}
    assert not listed & set(shown)
    assert set(keys) - listed == set(shown)


@pytest.mark.parametrize("name", ["cut7", "end1", "text3", "cut40"])
def test_a_damaged_image_stops_where_the_recipe_says_stop(damaged, name):
    root, _ = damaged
    dataset = open_dataset(root, "train", SampleLayout())
    (sample,) = (i for i in range(len(dataset)) if dataset.defect(i, "").key == f"{name}.jpg")
    with pytest.raises(RankError, match=rf"\.tar: {name}\.jpg"):
        list(evaluation_batches(dataset, SETTINGS, batch=2, device=CPU, ids=np.array([sample])))


JPEG = next(photos(1))
LABELS = {
    "missing": None,
    "empty": "",
    "blank": "  \n",
    "minus": "-1",
    "word": "cat",
    "float": "1.5",
    "list": "[3]",
    "second minus": "3 -1",
    "huge": str(2**31),
    "very huge": "9" * 30,
    "hex": "0x1",
    "unicode digit": "٣",
    "nul": "\0",
    "exponent": "1e3",
    "json": '{"label": 1}',
}
NAMES = ["../x.jpg", "a/../../x.jpg", "/etc/x.jpg", "a/../x.jpg", "..//x.jpg", "/x.jpg"]


def tar_of(path, members):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def good(number):
    return [(f"good{number}.jpg", JPEG), (f"good{number}.cls", b"1")]


def shown_keys(dataset):
    batches = evaluation_batches(
        dataset,
        SETTINGS,
        batch=8,
        device=CPU,
        quarantine=Quarantine(SkipRule(True, 1.0), len(dataset)),
    )
    return {dataset.defect(int(i), "").key for batch in batches for i in batch.ids_B}


def assert_one_is_left_out(tmp_path, words):
    """Both good neighbours are shown, the bad one is named; stop refuses it in one line."""
    dataset = open_dataset(tmp_path, "train", SampleLayout(), num_classes=16)
    assert shown_keys(dataset) == {"good0.jpg", "good1.jpg"}
    (defect,) = dataset.defects
    assert words in str(defect)
    with pytest.raises(UserError, match=r"input\.bad_samples=skip"):
        require_usable(dataset, SkipRule())
    require_usable(dataset, SkipRule(True, 0.5))


@pytest.mark.parametrize("text", LABELS.values(), ids=LABELS)
def test_a_wrong_label_costs_its_sample_alone(tmp_path, text):
    label = [] if text is None else [("bad.cls", text.encode())]
    tar_of(tmp_path / "train/x.tar", [*good(0), ("bad.jpg", JPEG), *label, *good(1)])
    assert_one_is_left_out(tmp_path, "x.tar: bad: ")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leaves_its_folder_is_never_a_sample(tmp_path, name):
    label = name.replace(".jpg", ".cls")
    tar_of(tmp_path / "train/x.tar", [*good(0), (name, JPEG), (label, b"1"), *good(1)])
    assert_one_is_left_out(tmp_path, "name leaves its folder")
    out = tmp_path / "packed"
    pack = ["data", "pack", str(tmp_path / "train"), str(out), "--reader", "webdataset"]
    assert main([*pack, "--workers", "1"]) == 2
    assert main([*pack, "--workers", "1", "--skip-bad"]) == 0
    assert sorted(p.name for p in out.iterdir() if p.suffix == ".tar") == ["packed-000000.tar"]
    assert not (tmp_path / "x.jpg").exists()


@pytest.mark.parametrize("too_large", [16, 99, 2**31 - 1])
def test_a_label_beyond_the_head_costs_its_sample_alone(tmp_path, too_large):
    bad = [("bad.jpg", JPEG), ("bad.cls", str(too_large).encode())]
    tar_of(tmp_path / "train/x.tar", [*good(0), *bad, *good(1)])
    dataset = open_dataset(tmp_path, "train", SampleLayout(), num_classes=16)
    assert shown_keys(dataset) == {"good0.jpg", "good1.jpg"}


@pytest.mark.parametrize("share", np.linspace(0.02, 0.98, 25))
def test_a_tar_cut_anywhere_loses_only_what_is_gone(tmp_path, share):
    members = [member for number in range(6) for member in good(number)]
    path = tar_of(tmp_path / "train/x.tar", members)
    tar_of(tmp_path / "train/y.tar", good(9))
    os.truncate(path, int(share * len(members) * (len(JPEG) // 2)))
    size = path.stat().st_size
    dataset = open_dataset(tmp_path, "train", SampleLayout())
    assert [d.reason for d in dataset.defects if not d.key] == ["damaged source"]
    # One sample: a header and the image in whole blocks, a header and the label in one.
    one = 512 + -(-len(JPEG) // 512) * 512 + 1024
    whole = size // one + (size % one >= one - 511)
    assert shown_keys(dataset) == {"good9.jpg"} | {f"good{i}.jpg" for i in range(whole)}


@pytest.mark.parametrize("content", [b"", bytes(1024), bytes(10240), b"no tar" * 200, JPEG, b"\0"])
def test_a_file_that_is_no_tar_is_named_and_costs_no_other(tmp_path, content):
    tar_of(tmp_path / "train/x.tar", [*good(0), *good(1)])
    (tmp_path / "train/y.tar").write_bytes(content)
    assert_one_is_left_out(tmp_path, "train/y.tar: ")


def index_of(source):
    return IndexPlace(source.parent, SampleLayout()).index(source)


def empty(index):
    index.write_bytes(b"")


def cut(index):
    os.truncate(index, index.stat().st_size // 2)


def nonsense(index):
    index.write_bytes(b"v1.2 1\n" * 100)


def of_another(index):
    index.write_bytes(index_of(index.with_name("y.tar")).read_bytes())


def zeros(index):
    index.write_bytes(bytes(index.stat().st_size))


def longer(index):
    index.write_bytes(index.read_bytes() + b"more")


@pytest.mark.parametrize("damage", [os.unlink, empty, cut, nonsense, of_another, zeros, longer])
def test_a_missing_or_damaged_index_is_made_again(tmp_path, damage):
    tar_of(tmp_path / "train/x.tar", [*good(0), *good(1)])
    tar_of(tmp_path / "train/y.tar", good(9))
    assert len(open_dataset(tmp_path, "train", SampleLayout())) == 3
    damage(index_of(tmp_path / "train/x.tar"))
    dataset = open_dataset(tmp_path, "train", SampleLayout())
    assert shown_keys(dataset) == {"good0.jpg", "good1.jpg", "good9.jpg"}


@pytest.mark.parametrize("number", range(5))
def test_a_stale_index_is_made_again(tmp_path, number):
    tar_of(tmp_path / "train/x.tar", good(0))
    assert len(open_dataset(tmp_path, "train", SampleLayout())) == 1
    tar_of(tmp_path / "train/x.tar", [m for i in range(number + 2) for m in good(i)])
    assert len(open_dataset(tmp_path, "train", SampleLayout())) == number + 2


@pytest.mark.parametrize("kept", [0, 600, 1500])
def test_a_shard_cut_after_it_was_indexed_costs_its_lost_samples_alone(tmp_path, kept):
    path = tar_of(tmp_path / "train/x.tar", [*good(0), *good(1)])
    tar_of(tmp_path / "train/y.tar", good(9))
    dataset = open_dataset(tmp_path, "train", SampleLayout())
    os.truncate(path, kept)
    assert shown_keys(dataset) == {"good9.jpg"}


@pytest.mark.parametrize("other_folder", [False, True])
def test_a_shard_that_was_indexed_and_is_gone_is_named_and_keeps_its_place(tmp_path, other_folder):
    index_dir = tmp_path / "indexes" if other_folder else None
    for number, name in enumerate("xyz"):
        tar_of(tmp_path / f"train/{name}.tar", good(number))
    before = open_dataset(tmp_path, "train", SampleLayout(), index_dir=index_dir)
    (tmp_path / "train/y.tar").unlink()
    dataset = open_dataset(tmp_path, "train", SampleLayout(), index_dir=index_dir)
    assert (len(dataset), dataset.digest) == (3, before.digest)
    with pytest.raises(UserError, match=r"train/y\.tar: gone \(1 samples"):
        require_usable(dataset, SkipRule())
    require_usable(dataset, SkipRule(True, 0.5))
    assert shown_keys(dataset) == {"good0.jpg", "good2.jpg"}


def test_there_are_at_least_two_hundred():
    images = 60 + 20 + 40 + 20 + 10 + 10  # and ten flips in tar headers
    others = len(LABELS) + len(NAMES) + 3 + 25 + 6 + 7 + 5 + 3 + 2
    assert sum(1 for _ in damages()) == images - 10
    assert images + others >= 200
