"""What nodes show before the first step."""

import forked
import pytest
from conftest import ROOT, run_ranks

from supmim_scale.errors import UserError
from supmim_scale.launch.nodes import ecc_problem, require_equal_versions, slow_ranks

WORKER = ROOT / "tests/preflight_worker.py"


def test_good_nodes_are_one_line_with_the_bandwidth_and_leave_nothing_behind(shards, tmp_path):
    said = run_ranks(WORKER, tmp_path / "run", shards, shards).stdout
    assert said.count("2 nodes, 2 ranks: devices, versions, data, run folder fine") == 2
    assert "all-reduce of 1.05 MB at" in said
    assert list((tmp_path / "run").iterdir()) == []


def test_the_node_that_does_not_see_the_data_is_named_on_every_rank(shards, tmp_path):
    said = run_ranks(WORKER, tmp_path / "run", shards, tmp_path / "nowhere").stdout
    lines = [line.partition(": ")[2] for line in said.splitlines() if line.startswith("rank")]
    assert lines[0] == lines[1]
    assert lines[0].startswith("error: preflight, node2: found input.root: ")
    assert "--exclude=node2" in lines[0]
    assert list((tmp_path / "run").iterdir()) == []


def test_the_node_that_does_not_answer_is_named(tmp_path, shards):
    done = forked.run_ranks([WORKER, tmp_path / "run", shards, "dead"], 2, timeout=120)
    assert "rank 0: error: preflight, node2: found no answer in 3 s" in done.stdout


def test_another_version_on_a_node_is_named():
    same, other = {"torch": "2.13.0", "timm": "1.0.31"}, {"torch": "2.12.1", "timm": "1.0.31"}
    require_equal_versions(["a", "b"], [same, same])
    with pytest.raises(UserError, match=r"c: found torch 2.12.1; expected 2.13.0 as on a"):
        require_equal_versions(["a", "b", "c"], [same, same, other])
    with pytest.raises(UserError, match="b: found timm missing"):
        require_equal_versions(["a", "b"], [same, {"torch": "2.13.0"}])


def test_a_device_far_below_the_others_is_told():
    assert slow_ranks(["a", "b", "c"], [10.0, 9.0, 8.0]) == []
    (line,) = slow_ranks(["a", "b", "c"], [10.0, 4.0, 9.0])
    assert line.startswith("b, rank 1 computes at 0.44 of the median")


def test_uncorrected_memory_errors_are_a_problem_and_no_ecc_is_none():
    """Answers in the form that nvidia-smi documents for this query."""
    assert ecc_problem("0\n0\n[N/A]\n") == ""
    assert ecc_problem("0\n3\n") == "3 uncorrected memory errors (ECC)"
