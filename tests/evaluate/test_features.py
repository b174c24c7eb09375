"""Features of a set: every image once, in the order of ids, without a second copy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from eval_fixture import ALONE, features_of
from thread_ranks import on_ranks

from supmim_scale.data.loader import Batch
from supmim_scale.errors import RankError
from supmim_scale.evaluation.features import cached, extract
from supmim_scale.launch.world import World


def batches(*ids):
    for part in ids:
        ids_B = np.array(part)
        rows_B1 = torch.from_numpy(ids_B).float().unsqueeze(1)
        yield Batch(rows_B1, torch.from_numpy(ids_B % 3).unsqueeze(1), ids_B, np.zeros_like(ids_B))


def test_images_stand_in_the_order_of_their_ids_and_what_was_left_out_is_not_there():
    for given in (([0, 1, 3], [5, 6]), ([6, 5], [3], [0, 1])):
        found = extract(lambda x: x.expand(-1, 4).bfloat16(), batches(*given), ALONE, 7, "x")
        assert found.ids_N.tolist() == [0, 1, 3, 5, 6]
        assert found.labels_NL[:, 0].tolist() == [0, 1, 0, 2, 0]
        assert found.features_ND.dtype == torch.float32
        assert torch.equal(found.features_ND[:, 3], torch.tensor([0.0, 1, 3, 5, 6]))


def test_features_that_are_not_finite_end_it_with_the_image():
    def encode(x):
        return x.expand(-1, 4) / torch.where(x == 5, 0.0, 1.0)

    with pytest.raises(RankError, match="features of image 5 that are not finite"):
        extract(encode, batches([0, 1, 3], [4, 5]), ALONE, 5, "x")


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_rank_has_the_features_of_all_and_one_may_have_none(ranks):
    def work(world):
        mine = [] if world.rank == 2 else [[world.rank, world.rank + 2], [world.rank + 4]]
        return extract(lambda x: x.expand(-1, 4), batches(*mine), world, 9, "x")

    for found in on_ranks(ranks, work):
        assert found.ids_N.tolist() == [0, 1, 2, 3, 4, 5]
        assert found.labels_NL[:, 0].tolist() == [0, 1, 2, 0, 1, 2]
        assert found.features_ND.tolist() == [[float(i)] * 4 for i in range(6)]


def test_a_share_is_a_view_and_shares_are_disjoint_and_complete():
    whole = features_of(11, seed=0)
    shares = [whole.share(World(rank, rank, 3, ALONE.device, "none")) for rank in range(3)]
    assert sorted(np.concatenate([share.ids_N for share in shares])) == list(range(11))
    storage = whole.features_ND.untyped_storage().data_ptr()
    for share in shares:
        assert share.features_ND.untyped_storage().data_ptr() == storage
        assert torch.equal(share.features_ND, whole.features_ND[share.ids_N])


def mapped_at(address):
    """Files that lie in memory at an address, as Linux tells."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, _, *name = line.split(maxsplit=5)
        first, end = (int(edge, 16) for edge in span.split("-"))
        if first <= address < end:
            yield Path(*name)


def test_what_is_kept_is_mapped_and_not_held_twice(tmp_path):
    made = features_of(9, seed=1)
    first = cached(tmp_path, {"a": 1}, ALONE, lambda: made)
    again = cached(tmp_path, {"a": 1}, ALONE, lambda: None)
    for found in (first, again):
        assert torch.equal(found.features_ND, made.features_ND)
        (kept,) = tmp_path.iterdir()
        assert kept in mapped_at(found.features_ND.data_ptr())
