"""What falls to a rank: evaluation's images, and bad samples of all ranks' lists."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from test_loader import CPU, SETTINGS, dataset

from supmim_scale.data.index_table import Defect
from supmim_scale.data.loader import evaluation_batches
from supmim_scale.data.quarantine import Quarantine, SkipRule, read_list, require_few, write_list
from supmim_scale.errors import RankError, UserError


@pytest.mark.parametrize(("ranks", "batch"), [(1, 8), (2, 8), (4, 8), (5, 3), (8, 4), (40, 2)])
def test_the_ranks_shares_of_an_evaluation_are_every_image_once(shards, ranks, batch):
    """33 images: no number of ranks here but 1 divides it, and with 40 some have none."""
    held_out = dataset(shards, "val")
    shares = [
        [
            b.ids_B.tolist()
            for b in evaluation_batches(
                held_out, SETTINGS, batch=batch, rank=rank, world_size=ranks, device=CPU
            )
        ]
        for rank in ((0, ranks // 2, 32, 39) if ranks == 40 else range(ranks))
    ]
    assert all(len(part) <= batch for share in shares for part in share)
    found = [image for share in shares for part in share for image in part]
    if ranks == 40:
        assert found == [0, 20, 32]
    else:
        assert sorted(found) == list(range(33))
        sizes = [sum(map(len, share)) for share in shares]
        assert max(sizes) - min(sizes) <= 1


def test_chosen_images_are_shared_out_too(shards):
    held_out, ids = dataset(shards, "val"), np.array([4, 9, 16, 25, 32])
    found = [
        batch.ids_B.tolist()
        for rank in range(2)
        for batch in evaluation_batches(
            held_out, SETTINGS, batch=2, rank=rank, world_size=2, device=CPU, ids=ids
        )
    ]
    assert found == [[4, 16], [32], [9, 25]]


def defect(number, source="train/x.tar"):
    return Defect(source, f"{number}.jpg", "bad", "by hand")


def quarantine(folder, rank, rate=0.05, split="train"):
    path = folder / f"{split}-{rank:05d}.jsonl"
    return Quarantine(SkipRule(True, rate), 100, path)


def test_a_start_counts_what_all_ranks_of_earlier_starts_have_met(tmp_path):
    for rank, numbers in ((0, (1, 2)), (1, (3,)), (2, (2, 4))):
        earlier = quarantine(tmp_path, rank)
        for number in numbers:
            earlier.add(defect(number))
    quarantine(tmp_path, 0, split="val").add(defect(77))
    for rank in (0, 1, 5):
        again = quarantine(tmp_path, rank)
        assert again.met == {("train/x.tar", f"{number}.jpg") for number in (1, 2, 3, 4)}
        again.add(defect(4))  # is known
    fifth = quarantine(tmp_path, 5)
    fifth.add(defect(5))
    with pytest.raises(RankError, match=r"6 bad samples.*and 1 more.*at most 0\.05 of 100"):
        fifth.add(defect(6))
    lines = (tmp_path / "train-00005.jsonl").read_text().splitlines()
    listed = [json.loads(line)["key"] for line in lines]
    assert listed == ["5.jpg", "6.jpg"]  # on disk before it stops the run
    assert len(read_list(tmp_path / "train-00001.jsonl")) == 1


def test_a_sample_is_counted_by_its_source_and_its_key():
    found = Quarantine(SkipRule(True, 1.0), 100)
    for source in ("a.tar", "b.tar", "a.tar"):
        found.add(defect(1, source))
    assert found.met == {("a.tar", "1.jpg"), ("b.tar", "1.jpg")}


def test_the_policy_allows_up_to_its_rate_and_nothing_where_it_says_stop():
    policy = SkipRule(True, 0.05)
    assert [policy.allows(count, 100) for count in (0, 1, 5, 6)] == [True, True, True, False]
    assert [SkipRule().allows(count, 100) for count in (0, 1)] == [True, False]
    assert not SkipRule(False, 1.0).allows(1, 100)
    stopped = (
        r"1 bad sample: .*expected none \(input\.bad_samples=stop\).*bad_samples=skip to continue"
    )
    with pytest.raises(RankError, match=stopped):
        Quarantine(SkipRule(), 100).add(defect(1))
    found = Quarantine(policy, 100)
    found.add(defect(1))
    found.require_few(5)  # of all ranks
    with pytest.raises(RankError, match=r"6 bad samples: .*; and 5 more.*raise input\.bad_rate"):
        found.require_few(6)
    require_few([defect(1)], 1, 100, policy)
    with pytest.raises(UserError, match="6 bad samples"):
        require_few([defect(number) for number in range(6)], 6, 100, policy)


def test_a_quarantine_list_is_read_back_as_it_was_written(tmp_path):
    defects = [defect(number) for number in range(3)]
    path = tmp_path / "a/b.jsonl"
    for some in (defects[:1], defects):  # the second in the place of the first
        write_list(path, some)
    assert [asdict(one) for one in read_list(path)] == [asdict(one) for one in defects]
    assert [file.name for file in path.parent.iterdir()] == ["b.jsonl"]
    path.write_text("{}\n")
    with pytest.raises(UserError, match="check the path"):
        read_list(path)
