"""Readers against sources as other tools write them, and against damage."""

import io
import os
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from tfrecord import TFRecordWriter

from supmim_scale.data.dataset import open_dataset
from supmim_scale.data.encoded import BadImageError
from supmim_scale.data.index import IndexPlace, load_indexes, make_index
from supmim_scale.data.readers import Layout, reader_named
from supmim_scale.data.readers.tfrecord_reader import masked_crc
from supmim_scale.data.shards import write_shard
from supmim_scale.data.table import Table
from supmim_scale.errors import UserError


def tar(path, members, format=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=format) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def tfrecord(path, examples):
    writer = TFRecordWriter(str(path))
    for example in examples:
        writer.write(example)
    writer.close()
    return path


def samples(root, pattern="train", **layout):
    """(key, bytes, labels) of every sample, in the index's order."""
    dataset = open_dataset(root, pattern, Layout(**layout))
    return [
        (dataset.defect(i, "").key, dataset.read(i).tobytes(), dataset.labels_of(i).tolist())
        for i in range(len(dataset))
    ]


def scan(path, **layout):
    """(table of one source, what was wrong with it)."""
    place = IndexPlace(path.parent, Layout(**layout), path.parent / "indexes")
    facts = make_index(path, place)
    return Table(facts.index), [(d.key, d.reason) for d in facts.defects]


LONG = "deep/" * 30 + "image with a name"


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize(
    "key", ["plain", "with blanks in it", LONG], ids=["plain", "blank", "long"]
)
def test_a_tars_bytes_are_found_whatever_the_name(tmp_path, key, format):
    """The usual index tool gives other bytes for GNU long names, and fails on blanks."""
    (tmp_path / "train").mkdir()
    tar(
        tmp_path / "train/x.tar",
        [("a.jpg", b"first"), ("a.cls", b"1"), (f"{key}.cls", b"7"), (f"{key}.jpg", b"second")],
        format,
    )
    assert samples(tmp_path) == [("a.jpg", b"first", [1]), (f"{key}.jpg", b"second", [7])]


def test_a_tar_as_the_webdataset_library_writes_it(tmp_path):
    import webdataset

    (tmp_path / "train").mkdir()
    with webdataset.TarWriter(str(tmp_path / "train/x.tar")) as writer:
        for number in range(3):
            writer.write({"__key__": f"n{number}", "jpg": b"bytes %d" % number, "cls": number,
                          "json": {"more": 1}})  # fmt: skip
    assert samples(tmp_path) == [(f"n{i}.jpg", b"bytes %d" % i, [i]) for i in range(3)]


def test_several_labels_an_image_keep_their_number(tmp_path):
    table, _ = scan(
        tar(
            tmp_path / "x.tar",
            [("a.jpg", b"x"), ("a.cls", b"3 5,8"), ("b.png", b"y"), ("b.cls", b"2\n")],
        )
    )
    assert [table.labels(row).tolist() for row in range(2)] == [[3, 5, 8], [2]]
    assert table.label_counts.tolist() == [3, 1]


@pytest.mark.parametrize(
    ("members", "key", "reason"),
    [
        ([("a.jpg", b"x")], "a", "missing label"),
        ([("a.jpg", b"x"), ("a.cls", b"")], "a", "missing label"),
        ([("a.jpg", b"x"), ("a.cls", b"-1")], "a", "label is no class id"),
        ([("a.jpg", b"x"), ("a.cls", b"cat")], "a", "label is no class id"),
        ([("a.jpg", b"x"), ("a.cls", b"1"), ("a.jpg", b"y")], "a", "duplicate key"),
        ([("a.jpg", b"x"), ("a.cls", b"1"), ("a.cls", b"2")], "a", "duplicate key"),
        ([("a.jpg", b""), ("a.cls", b"1")], "a", "zero bytes"),
        ([("a.cls", b"1")], "a", "label without an image"),
        ([("../a.jpg", b"x"), ("../a.cls", b"1")], "../a.jpg", "name leaves its folder"),
        ([("/a.jpg", b"x"), ("/a.cls", b"1")], "/a.jpg", "name leaves its folder"),
        ([("readme.txt", b"x")], "", "empty source"),
        ([], "", "empty source"),
    ],
)
def test_a_wrong_sample_is_named_and_its_neighbour_kept(tmp_path, members, key, reason):
    _, defects = scan(tar(tmp_path / "x.tar", members))
    assert defects == [(key, reason)]
    if key:
        good = [("good.jpg", b"z"), ("good.cls", b"4")]
        table, defects = scan(tar(tmp_path / "y.tar", [*good, *members]))
        assert defects == [(key, reason)]
        assert table.key(0) == "good.jpg"


@pytest.mark.parametrize("cut", range(100, 3600, 100))
def test_a_tar_cut_anywhere_says_so_and_keeps_what_is_whole(tmp_path, cut):
    members = [(f"{k}.{e}", b"1" * n) for k in "ab" for e, n in (("cls", 1), ("jpg", 300))]
    path = tar(tmp_path / "x.tar", members, tarfile.USTAR_FORMAT)
    os.truncate(path, cut)
    table, defects = scan(path)
    assert ("", "damaged source") in defects
    # Each member takes two blocks of 512; an image is whole when its 300 bytes are there.
    whole = sum(cut >= place for place in (3 * 512 + 300, 7 * 512 + 300))
    assert len(table) == whole


def test_a_tar_damaged_in_the_middle_keeps_what_came_before(tmp_path):
    members = [(f"{k}.{e}", b"1") for k in "abc" for e in ("cls", "jpg")]
    path = tar(tmp_path / "x.tar", members, tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    data[4 * 1024 : 4 * 1024 + 512] = b"\x07" * 512  # the header of c.cls
    path.write_bytes(data)
    table, defects = scan(path)
    assert len(table) == 2
    assert ("", "damaged source") in defects


def test_unlabelled_sets_need_no_labels(tmp_path):
    table, defects = scan(tar(tmp_path / "x.tar", [("a.jpg", b"x")]), labelled=False)
    assert (len(table), defects) == (1, [])
    assert table.labels(0).tolist() == []


def example(image=b"jpeg", labels=(1,), image_key="image/encoded", label_key="image/class/label"):
    return {image_key: (image, "byte"), label_key: (list(labels), "int")}


def test_tfrecords_are_read_with_any_number_of_labels(tmp_path):
    (tmp_path / "train").mkdir()
    tfrecord(tmp_path / "train/a.tfrecord", [example(b"one", [4]), example(b"two" * 99, [7, 1, 9])])
    tfrecord(tmp_path / "train/b.tfrecord", [example(b"three", [2])])
    found = samples(tmp_path, reader="tfrecord")
    assert [(data, labels) for _, data, labels in found] == [
        (b"one", [4]), (b"two" * 99, [7, 1, 9]), (b"three", [2])
    ]  # fmt: skip


def test_tfrecord_features_have_the_names_that_the_recipe_gives(tmp_path):
    (tmp_path / "train").mkdir()
    tfrecord(tmp_path / "train/a.tfrecord", [example(b"x", [3], "jpeg", "ids")])
    assert samples(tmp_path, reader="tfrecord", image="jpeg", label="ids")[0][2] == [3]
    _, defects = scan(tmp_path / "train/a.tfrecord", reader="tfrecord")
    assert defects == [("record 0", "no feature image/encoded")]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (example(labels=[]), "missing label"),
        (example(labels=[-1]), "label is no class id"),
        (example(image=b""), "zero bytes"),
    ],
)
def test_a_wrong_record_is_named_and_its_neighbours_kept(tmp_path, bad, reason):
    path = tfrecord(tmp_path / "x.tfrecord", [example(), bad, example()])
    table, defects = scan(path, reader="tfrecord")
    assert defects == [("record 1", reason)]
    assert [table.key(0), table.key(1)] == ["record 0", "record 2"]


def test_a_record_with_flipped_bits_is_found_by_its_checksum(tmp_path):
    path = tfrecord(tmp_path / "x.tfrecord", [example(b"J" * 50)] * 3)
    data = bytearray(path.read_bytes())
    third = len(data) // 3
    data[third + 40] ^= 1
    path.write_bytes(data)
    table, defects = scan(path, reader="tfrecord")
    assert defects == [("record 1", "damaged source")]
    assert len(table) == 2


def test_a_tfrecord_cut_anywhere_keeps_whole_records(tmp_path):
    path = tfrecord(tmp_path / "x.tfrecord", [example(b"J" * 50)] * 3)
    whole = path.read_bytes()
    record = len(whole) // 3
    for cut in range(1, len(whole), 7):
        path.write_bytes(whole[:cut])
        table, defects = scan(path, reader="tfrecord")
        assert len(table) == cut // record
        assert bool(defects) == (cut % record > 0)


def test_the_records_checksum_is_tfrecords_own():
    """As another writer computes it."""
    assert masked_crc(bytes(8)).to_bytes(4, "little") == TFRecordWriter.masked_crc(bytes(8))


def folder_tree(root):
    for name, number in (("n01", 3), ("n02", 2)):
        (root / "train" / name).mkdir(parents=True)
        for i in range(number):
            (root / "train" / name / f"{i}.JPEG").write_bytes(f"{name}{i}".encode())
        (root / "train" / name / "notes.txt").write_text("not an image")


def test_a_folder_a_class_takes_its_ids_from_the_sorted_names(tmp_path):
    folder_tree(tmp_path)
    found = sorted(samples(tmp_path, reader="folder"))
    assert [labels for _, _, labels in found] == [[0]] * 3 + [[1]] * 2
    assert found[0][:2] == ("train/n01/0.JPEG", b"n010")


def test_a_folder_a_class_takes_its_ids_from_a_class_list(tmp_path):
    folder_tree(tmp_path)
    found = sorted(samples(tmp_path, reader="folder", classes=("n00", "n02", "n01")))
    assert [labels for _, _, labels in found] == [[2]] * 3 + [[1]] * 2
    with pytest.raises(UserError, match="n02: found a folder that is no class"):
        samples(tmp_path, reader="folder", classes=("n01", "n03"))


def test_a_listing_is_indexed_again_when_a_class_gains_an_image(tmp_path):
    folder_tree(tmp_path)
    assert len(samples(tmp_path, reader="folder")) == 5
    (tmp_path / "train/n02/new.jpg").write_bytes(b"x")
    assert len(samples(tmp_path, reader="folder")) == 6


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_list_gives_single_and_several_labels(tmp_path, kind):
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(name.encode())
    columns = {"path": ["a.jpg", "b.jpg", "c.jpg"], "label": ["3", "1 2", "0"]}
    if kind == "csv":
        rows = zip(*columns.values(), strict=True)
        text = "path,label\n" + "\n".join(",".join(row) for row in rows)
        (tmp_path / "train.csv").write_text(text)
    else:
        columns["label"] = [[3], [1, 2], [0]]
        pa.parquet.write_table(pa.table(columns), tmp_path / "train.parquet")
    found = sorted(samples(tmp_path, f"train.{kind}", reader="list"))
    assert found == [("a.jpg", b"a", [3]), ("b.jpg", b"b", [1, 2]), ("c.jpg", b"c", [0])]


def test_a_list_may_name_classes_and_columns(tmp_path):
    (tmp_path / "train.csv").write_text("file,wnid\na.jpg,n02\n")
    layout = {"reader": "list", "image": "file", "label": "wnid", "classes": ("n01", "n02")}
    table, defects = scan(tmp_path / "train.csv", **layout)
    assert (table.labels(0).tolist(), defects) == ([1], [])
    with pytest.raises(UserError, match="a column path"):
        scan(tmp_path / "train.csv", reader="list")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("../a.jpg,1", "name leaves its folder"),
        ("/etc/a.jpg,1", "name leaves its folder"),
        ("a.jpg,", "missing label"),
        ("a.jpg,-1", "label is no class id"),
        ("a.jpg,cat", "label is no class id"),
        ("good.jpg,1", "duplicate key"),
        ("a.gif,1", "no image"),
        (",1", "no path"),
    ],
)
def test_a_wrong_row_of_a_list_is_named(tmp_path, row, reason):
    (tmp_path / "train.csv").write_text(f"path,label\ngood.jpg,0\n{row}\n")
    table, ((key, found),) = scan(tmp_path / "train.csv", reader="list")
    assert (found, len(table)) == (reason, 1)
    assert key.startswith("good.jpg" if reason == "duplicate key" else "row 2: ")


def test_a_listing_is_permuted_so_that_neighbours_are_of_many_classes(tmp_path):
    rows = "\n".join(f"{i}.jpg,{i // 100}" for i in range(1000))
    (tmp_path / "train.csv").write_text(f"path,label\n{rows}\n")
    table, _ = scan(tmp_path / "train.csv", reader="list")
    assert len(np.unique(table.labels_flat[:50])) == 10


def test_a_stale_or_damaged_index_is_made_again(tmp_path):
    path = tmp_path / "x.tar"
    write_shard(path, [("a", b"one", "jpg", "1")])

    place = IndexPlace(tmp_path, Layout())

    def load():
        (facts,) = load_indexes([path], place)
        return facts

    assert load().num_samples == 1
    write_shard(path, [("a", b"one", "jpg", "1"), ("b", b"two", "jpg", "2")])
    assert load().num_samples == 2
    whole = place.index(path).read_bytes()
    for damaged in (b"", b"nonsense", whole[: len(whole) // 2]):
        place.index(path).write_bytes(damaged)
        assert load().largest_label == 2


def test_indexes_of_two_readings_lie_side_by_side(tmp_path):
    """A run without labels must not pull the index from under one with labels."""
    (tmp_path / "train").mkdir()
    write_shard(tmp_path / "train/x.tar", [("a", b"one", "jpg", None), ("b", b"two", "jpg", "2")])
    labelled = open_dataset(tmp_path, "train", Layout())
    unlabelled = open_dataset(tmp_path, "train", Layout(labelled=False))
    assert (len(labelled), len(unlabelled)) == (1, 2)
    assert labelled.labels_of(0).tolist() == [2]
    assert unlabelled.labels_of(1).tolist() == []


def test_an_index_made_anew_under_a_run_is_not_taken_for_the_old_one(tmp_path):
    (tmp_path / "train").mkdir()
    write_shard(tmp_path / "train/x.tar", [("a", b"one", "jpg", "1")])
    running = open_dataset(tmp_path, "train", Layout())
    write_shard(tmp_path / "train/x.tar", [(k, b"two", "jpg", "1") for k in "ab"])
    open_dataset(tmp_path, "train", Layout())
    with pytest.raises(BadImageError, match="made anew while in use"):
        running.read(0)


def test_sources_of_one_name_in_several_folders_are_kept_apart(tmp_path):
    for folder in "ab":
        (tmp_path / folder / "shards").mkdir(parents=True)
        write_shard(tmp_path / folder / "shards/0.tar", [(folder, folder.encode(), "jpg", "1")])
    for index_dir in (None, tmp_path / "indexes"):
        dataset = open_dataset(tmp_path, "*/shards/*.tar", Layout(), index_dir=index_dir)
        assert [dataset.read(i).tobytes() for i in range(2)] == [b"a", b"b"]
        defects = [dataset.defect(i, "bad") for i in range(2)]
        assert [d.source for d in defects] == ["a/shards/0.tar", "b/shards/0.tar"]
        assert dataset.ids_of(defects) == {0, 1}


def test_a_glob_takes_no_index_for_a_source(tmp_path):
    (tmp_path / "train").mkdir()
    write_shard(tmp_path / "train/s-0.tar", [("a", b"one", "jpg", "1")])
    for _ in range(3):
        dataset = open_dataset(tmp_path, "train/s-*", Layout())
        assert (len(dataset), dataset.defects) == (1, [])


def test_the_digest_names_what_is_in_a_set(tmp_path):
    """Another file in a listing of the same length is another set."""
    folder_tree(tmp_path)
    before = open_dataset(tmp_path, "train", Layout("folder"))
    (tmp_path / "train/n02/1.JPEG").rename(tmp_path / "train/n02/9.JPEG")
    after = open_dataset(tmp_path, "train", Layout("folder"))
    assert len(before) == len(after)
    assert before.digest != after.digest


@pytest.mark.parametrize("name", ["x.tfrecord", "x-00000-of-00001", "x.tfrecord-00000-of-00001"])
def test_tfrecords_have_their_usual_names(tmp_path, name):
    (tmp_path / "train").mkdir()
    tfrecord(tmp_path / "train" / name, [example()])
    assert len(samples(tmp_path, reader="tfrecord")) == 1


def test_a_link_that_leads_nowhere_is_told_in_one_line(tmp_path):
    (tmp_path / "train").mkdir()
    write_shard(tmp_path / "train/0.tar", [("a", b"one", "jpg", "1")])
    (tmp_path / "train/1.tar").symlink_to(tmp_path / "gone.tar")
    with pytest.raises(UserError, match=r"1\.tar: found No such file"):
        open_dataset(tmp_path, "train", Layout())


def test_class_names_may_have_blanks(tmp_path):
    (tmp_path / "train.csv").write_text("path,label\na.jpg,white shark\nb.jpg,1\n")
    layout = {"reader": "list", "classes": ("white shark", "tench")}
    table, defects = scan(tmp_path / "train.csv", **layout)
    assert (sorted(table.labels_flat.tolist()), defects) == ([0, 1], [])


def test_an_index_goes_where_the_recipe_says(tmp_path):
    (tmp_path / "train").mkdir()
    path = tmp_path / "train/x.tar"
    write_shard(path, [("a", b"one", "jpg", "1")])
    place = IndexPlace(tmp_path, Layout(), tmp_path / "indexes")
    load_indexes([path], place)
    assert place.index(path).parent == tmp_path / "indexes/train"
    assert place.index(path).is_file()
    assert [p.name for p in (tmp_path / "train").iterdir()] == ["x.tar"]


def test_many_sources_are_indexed_by_several_processes_alike(tmp_path):
    paths = [tmp_path / f"{i:02}.tar" for i in range(20)]
    for number, path in enumerate(paths):
        write_shard(path, [(f"{number}", b"x" * (number + 1), "jpg", str(number))])
    one = load_indexes(paths, IndexPlace(tmp_path, Layout(), tmp_path / "one"), workers=1)
    two = load_indexes(paths, IndexPlace(tmp_path, Layout(), tmp_path / "two"), workers=2)
    assert [f.num_bytes for f in two] == [f.num_bytes for f in one] == list(range(1, 21))
    assert [f.source for f in two] == paths


def test_an_unfinished_shard_never_has_the_shards_name(tmp_path):
    def interrupted():
        yield "a", b"one", "jpg", "1"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "x.tar", interrupted())
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_reader_is_refused():
    with pytest.raises(UserError, match="webdataset, tfrecord, folder, list"):
        reader_named("lmdb")
