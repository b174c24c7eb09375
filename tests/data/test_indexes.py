"""Indexes: found, made anew, kept apart."""

import pytest
from sources import example, folder_tree, samples, scan, tfrecord

from supmim_scale.data.dataset import open_dataset
from supmim_scale.data.headers import BadImageError
from supmim_scale.data.index import IndexPlace, load_indexes
from supmim_scale.data.readers import SampleLayout, reader_named
from supmim_scale.data.shards import write_shard
from supmim_scale.errors import UserError


def test_a_stale_or_damaged_index_is_made_again(tmp_path):
    path = tmp_path / "x.tar"
    write_shard(path, [("a", b"one", "jpg", "1")])

    place = IndexPlace(tmp_path, SampleLayout())

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
    labelled = open_dataset(tmp_path, "train", SampleLayout())
    unlabelled = open_dataset(tmp_path, "train", SampleLayout(labelled=False))
    assert (len(labelled), len(unlabelled)) == (1, 2)
    assert labelled.labels_of(0).tolist() == [2]
    assert unlabelled.labels_of(1).tolist() == []


def test_an_index_made_anew_under_a_run_is_not_taken_for_the_old_one(tmp_path):
    (tmp_path / "train").mkdir()
    write_shard(tmp_path / "train/x.tar", [("a", b"one", "jpg", "1")])
    running = open_dataset(tmp_path, "train", SampleLayout())
    write_shard(tmp_path / "train/x.tar", [(k, b"two", "jpg", "1") for k in "ab"])
    open_dataset(tmp_path, "train", SampleLayout())
    with pytest.raises(BadImageError, match="made anew while in use"):
        running.read(0)


def test_sources_of_one_name_in_several_folders_are_kept_apart(tmp_path):
    for folder in "ab":
        (tmp_path / folder / "shards").mkdir(parents=True)
        write_shard(tmp_path / folder / "shards/0.tar", [(folder, folder.encode(), "jpg", "1")])
    for index_dir in (None, tmp_path / "indexes"):
        dataset = open_dataset(tmp_path, "*/shards/*.tar", SampleLayout(), index_dir=index_dir)
        assert [dataset.read(i).tobytes() for i in range(2)] == [b"a", b"b"]
        defects = [dataset.defect(i, "bad") for i in range(2)]
        assert [d.source for d in defects] == ["a/shards/0.tar", "b/shards/0.tar"]
        assert dataset.ids_of(defects) == {0, 1}


def test_a_glob_takes_no_index_for_a_source(tmp_path):
    (tmp_path / "train").mkdir()
    write_shard(tmp_path / "train/s-0.tar", [("a", b"one", "jpg", "1")])
    for _ in range(3):
        dataset = open_dataset(tmp_path, "train/s-*", SampleLayout())
        assert (len(dataset), dataset.defects) == (1, [])


def test_the_digest_names_what_is_in_a_set(tmp_path):
    """Another file in a listing of the same length is another set."""
    folder_tree(tmp_path)
    before = open_dataset(tmp_path, "train", SampleLayout("folder"))
    (tmp_path / "train/n02/1.JPEG").rename(tmp_path / "train/n02/9.JPEG")
    after = open_dataset(tmp_path, "train", SampleLayout("folder"))
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
        open_dataset(tmp_path, "train", SampleLayout())


def test_class_names_may_have_blanks(tmp_path):
    (tmp_path / "train.csv").write_text("path,label\na.jpg,white shark\nb.jpg,1\n")
    layout = {"reader": "list", "classes": ("white shark", "tench")}
    table, defects = scan(tmp_path / "train.csv", **layout)
    assert (sorted(table.labels_flat.tolist()), defects) == ([0, 1], [])


def test_an_index_goes_where_the_recipe_says(tmp_path):
    (tmp_path / "train").mkdir()
    path = tmp_path / "train/x.tar"
    write_shard(path, [("a", b"one", "jpg", "1")])
    place = IndexPlace(tmp_path, SampleLayout(), tmp_path / "indexes")
    load_indexes([path], place)
    assert place.index(path).parent == tmp_path / "indexes/train"
    assert place.index(path).is_file()
    assert [p.name for p in (tmp_path / "train").iterdir()] == ["x.tar"]


def test_many_sources_are_indexed_by_several_processes_alike(tmp_path):
    paths = [tmp_path / f"{i:02}.tar" for i in range(20)]
    for number, path in enumerate(paths):
        write_shard(path, [(f"{number}", b"x" * (number + 1), "jpg", str(number))])
    one = load_indexes(paths, IndexPlace(tmp_path, SampleLayout(), tmp_path / "one"), workers=1)
    two = load_indexes(paths, IndexPlace(tmp_path, SampleLayout(), tmp_path / "two"), workers=2)
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
