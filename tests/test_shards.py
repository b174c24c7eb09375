"""Our index against tars as other tools write them, and against damage."""

import io
import os
import tarfile

import pytest

from supmim_scale.data.shards import load_index, scan_shard, write_shard
from supmim_scale.errors import UserError


def tar(path, members, format=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=format) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def bytes_at(index, row):
    with open(index.path, "rb") as file:
        file.seek(int(index.offset[row]))
        return file.read(int(index.size[row]))


LONG = "deep/" * 30 + "image with a name"


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize(
    "key", ["plain", "with blanks in it", LONG], ids=["plain", "blank", "long"]
)
def test_the_index_finds_the_bytes_whatever_the_name(tmp_path, key, format):
    """The usual index tool gives other bytes for GNU long names, and fails on blanks."""
    path = tar(
        tmp_path / "x.tar",
        [("a.jpg", b"first"), ("a.cls", b"1"), (f"{key}.cls", b"7"), (f"{key}.jpg", b"second")],
        format,
    )
    index = scan_shard(path)
    assert [bytes_at(index, row) for row in (0, 1)] == [b"first", b"second"]
    assert index.labels.tolist() == [[1], [7]]


def test_several_labels_and_none_are_padded(tmp_path):
    path = tar(
        tmp_path / "x.tar",
        [("a.jpg", b"x"), ("a.cls", b"3 5,8"), ("b.png", b"y"), ("b.cls", b"")],
    )
    assert scan_shard(path).labels.tolist() == [[3, 5, 8], [-1, -1, -1]]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("a.jpg", b"x")], "no .cls"),
        ([("a.jpg", b"x"), ("a.cls", b"-1")], "-1"),
        ([("a.jpg", b"x"), ("a.cls", b"cat")], "cat"),
        ([("a.jpg", b"x"), ("a.cls", b"1"), ("a.jpg", b"y")], "twice"),
    ],
)
def test_a_wrong_sample_is_named(tmp_path, members, words):
    with pytest.raises(UserError, match=words) as caught:
        scan_shard(tar(tmp_path / "x.tar", members))
    assert "x.tar: a" in str(caught.value)


@pytest.mark.parametrize("cut", [700, 1300, 2000])
def test_a_truncated_tar_is_refused(tmp_path, cut):
    path = tar(tmp_path / "x.tar", [("a.jpg", b"x" * 900), ("a.cls", b"1")])
    os.truncate(path, cut)
    with pytest.raises(UserError, match=r"x\.tar"):
        scan_shard(path)


def test_a_stale_or_damaged_index_is_made_again(tmp_path):
    path = tmp_path / "x.tar"
    write_shard(path, [("a", b"one", "jpg", "1")])
    assert len(load_index(path, None)) == 1
    write_shard(path, [("a", b"one", "jpg", "1"), ("b", b"two", "jpg", "2")])
    assert len(load_index(path, None)) == 2
    (tmp_path / "x.tar.index").write_bytes(b"nonsense")
    assert load_index(path, None).labels.tolist() == [[1], [2]]


def test_an_index_goes_where_the_recipe_says(tmp_path):
    (tmp_path / "train").mkdir()
    path = tmp_path / "train/x.tar"
    write_shard(path, [("a", b"one", "jpg", "1")])
    load_index(path, tmp_path / "indexes")
    assert (tmp_path / "indexes/train/x.tar.index").is_file()
    assert not (tmp_path / "train/x.tar.index").exists()


def test_an_unfinished_shard_never_has_the_shards_name(tmp_path):
    def samples():
        yield "a", b"one", "jpg", "1"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "x.tar", samples())
    assert not (tmp_path / "x.tar").exists()
