"""What ranks say to each other, over a real process group of two and alone."""

import json

import pytest
import torch
from conftest import run_ranks
from eval_fixture import ALONE

from supmim_scale.errors import UserError


def test_two_ranks_agree(tmp_path):
    run_ranks("tests/world_worker.py", tmp_path, ranks=2)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    refusals = [f"where: found rank {rank}; expected expected; fix" for rank in (0, 1)]
    for rank, one in enumerate(found):
        assert one == {
            "sum": [2, 1],
            "max": [1, 0],
            "any": [False, True, True],
            "all": [True, False, False],
            "gather": [{"rank": 0}, {"rank": 1}],
            "broadcast": [1, 1],
            "main_first": [rank, *refusals],
            "is_main": rank == 0,
        }
    turns = (tmp_path / "turns.txt").read_text().split()
    # The second finds the files of the first, and does not begin where that one is refused.
    assert turns == ["0", "1", "0", "0", "1"]


def test_a_rank_that_is_alone_needs_nobody():
    assert ALONE.sum(torch.tensor([2.0])).tolist() == [2]
    assert ALONE.max(torch.tensor([2.0])).tolist() == [2]
    assert ALONE.broadcast(torch.tensor([2]), 0).tolist() == [2]
    assert (ALONE.any(True), ALONE.any(False)) == (True, False)
    assert (ALONE.all(True), ALONE.all(False)) == (True, False)
    assert ALONE.gather("x") == ["x"]
    assert ALONE.main_first(lambda: 7) == 7
    ALONE.barrier()

    def refuse():
        raise UserError("where", "found", "expected", "fix")

    with pytest.raises(UserError, match="where"):
        ALONE.main_first(refuse)
