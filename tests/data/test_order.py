"""The order of samples: complete, mixed, the same for every split, and whole shards a rank."""

import json

import numpy as np
import pytest

from supmim_scale.data.order import SampleOrder
from supmim_scale.data.position import ReaderPosition
from supmim_scale.errors import UserError

SIZES = np.array([701, 833, 1, 765, 850, 799, 777, 813, 790, 1200, 1000, 778, 700])  # 10,007 of 13


@pytest.mark.parametrize("lanes", [1, 2, 5, 13, 64])
def test_every_epoch_holds_every_sample_once(lanes):
    order = SampleOrder(SIZES, seed=1, lanes=lanes)
    assert order.num_samples == 10_007
    assert order.lanes == min(lanes, 13)
    epochs, ids = order.at(0, 3 * 10_007)
    for epoch in range(3):
        assert (epochs[epoch * 10_007 : (epoch + 1) * 10_007] == epoch).all()
        assert (np.sort(ids[epoch * 10_007 : (epoch + 1) * 10_007]) == np.arange(10_007)).all()
    assert (ids[:10_007] != ids[10_007 : 2 * 10_007]).any()


def test_a_part_of_the_order_is_that_part_of_the_whole():
    order, whole = (SampleOrder(SIZES, seed=1, lanes=5) for _ in range(2))
    epochs, ids = whole.at(0, 25_000)
    for start, count in [(0, 1), (9_990, 64), (17, 5000), (20_013, 2)]:
        part = order.at(start, count)
        assert (part[0] == epochs[start : start + count]).all()
        assert (part[1] == ids[start : start + count]).all()


@pytest.mark.parametrize("group", [1, 2])
def test_shares_make_up_the_global_batch_for_every_split(group):
    order = SampleOrder(SIZES, seed=1, lanes=6)
    for start in (0, 9_960, 10_007, 33_000):
        expected = sorted(zip(*order.at(start, 48), strict=True))
        for parts, split in [(1, 1), (2, 1), (3, 4), (4, 2), (8, 3)]:
            shares = [
                micro
                for part in range(parts)
                for micro in order.share(start, 48, part, parts, split, group)
            ]
            assert {len(ids) for _, ids in shares} == {48 // parts // split}
            found = [pair for epochs, ids in shares for pair in zip(epochs, ids, strict=True)]
            assert sorted(found) == expected


def test_pairs_stay_side_by_side_for_every_split():
    order = SampleOrder(SIZES, seed=1, lanes=6)
    _, ids = order.at(100, 48)
    pairs = {tuple(pair) for pair in ids.reshape(-1, 2).tolist()}
    for parts in (1, 2, 3, 4):
        shares = [order.share(100, 48, part, parts, 2, group=2) for part in range(parts)]
        found = [ids for share in shares for _, ids in share]
        assert {tuple(p) for ids in found for p in ids.reshape(-1, 2).tolist()} == pairs


def shards_read(ranks, lanes, group=1):
    """Shards that each rank reads from in an epoch of 32 shards of 64 samples."""
    sizes = np.full(32, 64)
    order = SampleOrder(sizes, seed=0, lanes=lanes)
    read = [set() for _ in range(ranks)]
    for start in range(0, 2048, 64):
        for rank in range(ranks):
            ((_, ids),) = order.share(start, 64, rank, ranks, group=group)
            read[rank] |= set((ids // 64).tolist())
    return read


@pytest.mark.parametrize(("ranks", "lanes"), [(2, 8), (4, 16), (8, 8), (16, 32)])
def test_a_rank_reads_whole_shards_where_there_are_enough(ranks, lanes):
    read = shards_read(ranks, lanes)
    assert sum(map(len, read)) == 32  # each by one rank alone
    assert {len(shards) for shards in read} == {32 // ranks}


def test_with_pairs_a_rank_reads_whole_shards_where_there_are_twice_as_many():
    assert sum(map(len, shards_read(4, 8, group=2))) == 32


def test_ranks_share_shards_where_there_are_not_enough():
    assert sum(map(len, shards_read(8, 4))) == 64


def test_class_sorted_shards_are_mixed_by_the_order():
    """20 classes in 20 sorted shards; a local buffer of 1024 would show 2 of them at first."""
    order = SampleOrder(np.full(20, 1000), seed=0, lanes=64)
    _, ids = order.at(0, 64)
    assert len(np.unique(ids // 1000)) == 20


def test_a_position_is_read_back_and_holds_for_its_own_set_only():
    position = ReaderPosition(4096, 10_007, "abc")
    assert ReaderPosition.of(json.loads(position.to_json())) == position
    start = ReaderPosition(0, 10_007, "abc")
    assert ReaderPosition.of(json.loads(start.to_json())) == start
    position.require_same_set(10_007, "abc")
    with pytest.raises(UserError, match="10008 samples"):
        position.require_same_set(10_008, "abc")
    for facts in ("", {}, {"samples_seen": -1, "num_samples": 1, "digest": ""}, None):
        with pytest.raises(UserError, match="another checkpoint"):
            ReaderPosition.of(facts)
