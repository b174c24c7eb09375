"""What ZeRO-3 gathers in a step, counted in real collectives of two ranks."""

import itertools
import json

import pytest
from conftest import run_ranks

DEPTH, DECODER, BLOCK = 8, 1, 12_704  # blocks of the worker's model, and the parameters of one
OUTER = 1.5  # blocks' worth of parameters outside of blocks, at most


@pytest.fixture(scope="module")
def gathers(tmp_path_factory):
    """Of a step: elements that are gathered in all, and until each block of the encoder begins."""
    folder = tmp_path_factory.mktemp("gathers")
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    knobs = {"usual": zero, "no prefetch": zero | {"stage3_prefetch_bucket_size": 0}}
    for name, content in knobs.items():
        (folder / f"{name}.json").write_text(json.dumps({"zero_optimization": content}))
    jobs = [
        f"{name}/{layout}/{policy}:engine.ds_config={folder / name}.json,mim.layout={layout},"
        f"engine.activation_checkpointing={policy}"
        for name, layout, policy in [
            ("usual", "clean_and_masked", "none"),
            ("usual", "clean_and_masked", "full"),
            ("usual", "masked_only", "none"),
            ("no prefetch", "clean_and_masked", "none"),
        ]
    ]
    run_ranks("tests/gathers_worker.py", folder / "out.json", *jobs)
    return json.loads((folder / "out.json").read_text())


@pytest.mark.parametrize("policy", ["none", "full"])
def test_a_block_is_gathered_once_in_forward_and_once_in_backward_for_both_passes(gathers, policy):
    """Where forward turns into backward the last blocks are still there."""
    blocks = gathers[f"usual/clean_and_masked/{policy}"]["elements"] / BLOCK
    assert 2 * DEPTH - 4 < blocks < 2 * (DEPTH + DECODER) + OUTER


def test_two_passes_of_the_encoder_gather_no_more_than_one(gathers):
    both, one = (gathers[f"usual/{name}/none"] for name in ("clean_and_masked", "masked_only"))
    assert both["elements"] == pytest.approx(one["elements"], rel=0.01)
    assert both["gathers"] <= one["gathers"]


def test_the_next_two_blocks_are_on_their_way_before_a_block_begins(gathers):
    ahead = gathers["usual/clean_and_masked/none"]["at_block"]
    behind = gathers["no prefetch/clean_and_masked/none"]["at_block"]
    assert [b - a for a, b in itertools.pairwise(behind)] == [BLOCK] * (DEPTH - 1)
    gaps = [(a - b) / BLOCK for a, b in zip(ahead, behind, strict=True)]
    assert all(gap > 2 for gap in gaps), gaps
