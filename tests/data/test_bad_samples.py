"""Samples that cannot be used: named, or replaced, counted and listed."""

import io
import json
from dataclasses import replace

import pytest
from PIL import Image
from test_loader import CPU, SETTINGS, dataset

from supmim_scale.data.dali import ViewPipeline
from supmim_scale.data.loader import Share, evaluation_batches, training_batches
from supmim_scale.data.order import SampleOrder
from supmim_scale.data.quarantine import Quarantine, SkipRule
from supmim_scale.data.shards import write_shard
from supmim_scale.errors import RankError, UserError


def as_gif(data):
    out = io.BytesIO()
    Image.open(io.BytesIO(data)).save(out, "GIF")
    return out.getvalue()


def broken_huffman(data):
    """Markers and lengths are whole; a code table counts more codes than there can be."""
    place = data.index(b"\xff\xc4")
    return data[: place + 5] + b"\xff" * 4 + data[place + 9 :]


DAMAGES = {
    "cut in half": lambda data: data[: len(data) // 2],
    "end marker gone": lambda data: data[:-2],
    "text": lambda data: b"no image",
    "gif": as_gif,
    "zeros": lambda data: bytes(len(data)),
    "code table": broken_huffman,
}


def one_bad(tmp_path, shards, damage, at=(5,)):
    """A set of 8 samples with bad ones, and another of the 16 images that are good."""
    whole = dataset(shards)
    images = [whole.read(i).tobytes() for i in range(8)]
    for place in at:
        images[place] = damage(images[place])
    (tmp_path / "train").mkdir()
    samples = ((f"{i}", data, "jpg", "0") for i, data in enumerate(images))
    write_shard(tmp_path / "train/x.tar", samples)
    return dataset(tmp_path)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_sample_that_cannot_be_decoded_is_named(tmp_path, shards, damage):
    bad = one_bad(tmp_path, shards, damage)
    with pytest.raises(RankError, match=r"train/x\.tar: 5\.jpg"):
        list(evaluation_batches(bad, SETTINGS, batch=4, device=CPU))


def skipping(bad, tmp_path, rate, ranks=1, rank=0, count=4, known=()):
    """Ids shown by a rank under the skip policy, its quarantine and the file of it."""
    quarantine = Quarantine(
        SkipRule(True, rate), len(bad), tmp_path / f"quarantine/train-{rank}.jsonl"
    )
    order = SampleOrder(bad.sizes, seed=0, lanes=1)
    batches = training_batches(
        bad,
        order,
        SETTINGS,
        Share(4 // ranks, 1, rank, ranks),
        seed=0,
        device=CPU,
        quarantine=quarantine,
        known_bad=known,
    )
    shown = [next(batches) for _ in range(count)]
    return [batch.ids_B.tolist() for batch in shown], quarantine, batches


@pytest.mark.parametrize("name", DAMAGES)
def test_a_skipped_sample_is_replaced_counted_and_listed(tmp_path, shards, name):
    bad = one_bad(tmp_path, shards, DAMAGES[name])
    ids, quarantine, _ = skipping(bad, tmp_path, rate=0.2)
    assert all(len(batch) == 4 for batch in ids)
    epoch = ids[0] + ids[1]
    assert 5 not in epoch
    assert set(epoch) == set(range(8)) - {5}  # no good sample is lost
    assert len(quarantine.met) == 1
    (line,) = (tmp_path / "quarantine/train-0.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "5.jpg"


def test_a_replacement_does_not_depend_on_ranks_or_on_being_known_before(tmp_path, shards):
    bad = one_bad(tmp_path, shards, DAMAGES["code table"])
    alone, _, _ = skipping(bad, tmp_path, rate=0.2)
    two = [skipping(bad, tmp_path, 0.2, 2, rank)[0] for rank in (0, 1)]
    for step, batch in enumerate(alone):
        assert sorted(batch) == sorted(two[0][step] + two[1][step])
    known, quarantine, _ = skipping(bad, tmp_path / "known", rate=0.2, known={5})
    assert known == alone
    assert quarantine.met == {("train/x.tar", "5.jpg")}  # counted all the same


def test_above_the_rate_it_stops_with_the_list(tmp_path, shards):
    """One is allowed; threads read ahead, so the third may be known when the second stops it."""
    bad = one_bad(tmp_path, shards, DAMAGES["text"], at=(1, 4, 6))
    with pytest.raises(RankError, match=r"[23] bad samples.*\.jpg.*\.jpg.*at most 0\.2 of 8"):
        skipping(bad, tmp_path, rate=0.2)


def own_copy(tmp_path, shards):
    """The training shards where a test may harm them, and the set opened on them."""
    copy = tmp_path / "train"
    copy.mkdir()
    for path in (shards / "train").glob("*.tar"):
        (copy / path.name).write_bytes(path.read_bytes())
    return copy, dataset(tmp_path)


def test_a_set_that_went_away_stops_at_once(tmp_path, shards):
    train = dataset(shards)
    copy, here = own_copy(tmp_path, shards)
    assert len(here) == len(train)
    for path in copy.glob("*.tar"):
        path.unlink()
    with pytest.raises(RankError, match="16 bad samples one after the other"):
        skipping(here, tmp_path, rate=1.0)


def test_a_shard_that_disappears_is_replaced_within_the_rate(tmp_path, shards):
    copy, here = own_copy(tmp_path, shards)
    (copy / "train-000001.tar").unlink()
    ids, quarantine, _ = skipping(here, tmp_path, rate=0.5, count=24)
    shown = {sample for batch in ids for sample in batch}
    assert shown == {*range(32), *range(64, 96)}
    assert len(quarantine.met) == 32
    with pytest.raises(RankError, match=r"train/train-000001\.tar.*not readable"):
        skipping(here, tmp_path / "other", rate=0.2, count=24)


def test_evaluation_leaves_a_skipped_sample_out_and_puts_none_in_its_place(tmp_path, shards):
    bad = one_bad(tmp_path, shards, DAMAGES["code table"])
    quarantine = Quarantine(SkipRule(True, 0.2), len(bad))
    batches = evaluation_batches(bad, SETTINGS, batch=1, device=CPU, quarantine=quarantine)
    assert [int(batch.ids_B[0]) for batch in batches] == [0, 1, 2, 3, 4, 6, 7]


def test_what_is_no_image_s_fault_ends_the_run(tmp_path, shards, monkeypatch):
    """A pipeline that fails once over images which its decoder takes."""
    failures, give = [RuntimeError("out of memory")], ViewPipeline.next

    def fail(pipeline):
        if failures:
            raise failures.pop()
        return give(pipeline)

    monkeypatch.setattr(ViewPipeline, "next", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        skipping(dataset(shards), tmp_path, rate=1.0)


def test_labels_beyond_the_head_are_bad_samples(tmp_path, shards):
    whole = dataset(shards)
    (tmp_path / "train").mkdir()
    samples = ((f"{i}", whole.read(i).tobytes(), "jpg", str(9 * i)) for i in range(3))
    write_shard(tmp_path / "train/x.tar", samples)
    with pytest.raises(RankError, match=r"2\.jpg: label 18 of 16 classes"):
        list(evaluation_batches(dataset(tmp_path), SETTINGS, batch=3, device=CPU))


def test_a_quarantine_list_of_another_set_is_refused(tmp_path, shards):
    train = dataset(shards)
    defect = train.defect(40, "bad")
    assert train.ids_of([defect]) == {40}
    with pytest.raises(UserError, match="a sample of this set"):
        train.ids_of([replace(defect, key="other.jpg")])
    with pytest.raises(UserError, match=r"input\.quarantine"):
        train.ids_of([replace(defect, source="train/other.tar")])


def test_an_index_removed_under_a_run_is_a_bad_sample_and_no_traceback(tmp_path, shards):
    copy, here = own_copy(tmp_path, shards)
    for index in copy.glob("*.index"):
        index.unlink()
    with pytest.raises(RankError, match=r"train/train-00000\d\.tar: row \d+: not readable"):
        list(evaluation_batches(here, SETTINGS, batch=4, device=CPU))
