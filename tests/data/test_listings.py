"""Folders of classes, and CSV and Parquet lists."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from sources import folder_tree, samples, scan

from supmim_scale.errors import UserError


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
