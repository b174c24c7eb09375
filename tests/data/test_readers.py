"""Tars and TFRecords as other tools write them, and damaged ones."""

import os
import tarfile

import pytest
from sources import example, samples, scan, tar, tfrecord
from tfrecord import TFRecordWriter

from supmim_scale.data.readers.tfrecord import masked_crc

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
            writer.write(
                {
                    "__key__": f"n{number}",
                    "jpg": b"bytes %d" % number,
                    "cls": number,
                    "json": {"more": 1},
                }
            )
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


def test_tfrecords_are_read_with_any_number_of_labels(tmp_path):
    (tmp_path / "train").mkdir()
    tfrecord(tmp_path / "train/a.tfrecord", [example(b"one", [4]), example(b"two" * 99, [7, 1, 9])])
    tfrecord(tmp_path / "train/b.tfrecord", [example(b"three", [2])])
    found = samples(tmp_path, reader="tfrecord")
    assert [(data, labels) for _, data, labels in found] == [
        (b"one", [4]),
        (b"two" * 99, [7, 1, 9]),
        (b"three", [2]),
    ]


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
