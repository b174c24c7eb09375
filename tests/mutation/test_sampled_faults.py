"""The faults that are put into the core are small, parse and are noticed by the tests."""

import json

import pytest
from mutation.cover import COVERED, files_of, source_of
from mutation.forks import ROOT
from mutation.operators import mutants
from mutation.sample import sampled, table_of

SOURCE = '''"""A text of 3 words."""
def f(a: int = 1, *, flag: bool = True) -> "list[int]":
    """Not 2 of it."""
    if not a or a <= 2:
        raise ValueError(f"{a + 1} is not 2")
    total = min(a, 4) - 1
    total += 2
    print(total + 1)
    return [-total if flag else total]
'''


def test_a_fault_changes_one_place_and_never_a_text_or_an_annotation():
    found = [(one.line, one.before, one.after) for one in mutants(SOURCE)]
    assert set(found) == {
        (2, "1", "(2)"),
        (2, "True", "(False)"),
        (4, "not a or a <= 2", "(not (not a or a <= 2))"),
        (4, "not a or a <= 2", "(not a and a <= 2)"),
        (4, "not a", "(a)"),
        (4, "a <= 2", "(a < 2)"),
        (4, "2", "(3)"),
        (5, 'raise ValueError(f"{a + 1} is not 2")', "pass"),
        (6, "min(a, 4) - 1", "(min(a, 4) + 1)"),
        (6, "min(a, 4)", "(max(a, 4))"),
        (6, "4", "(5)"),
        (6, "1", "(2)"),
        (7, "total += 2", "pass"),
        (7, "2", "(3)"),
        (9, "return [-total if flag else total]", "return None"),
        (9, "-total if flag else total", "(total if flag else -total)"),
        (9, "-total", "(total)"),
    }
    assert len(found) == len(set(found))
    for one in mutants(SOURCE):
        compile(one.source, "fault", "exec")
        assert one.source.replace(one.after, one.before, 1) == SOURCE or one.after == "pass"


def test_every_module_and_every_test_that_is_named_is_there():
    for module in COVERED:
        quick, slow = files_of(module)
        assert quick, module
        for path in (source_of(module), *quick, *slow):
            assert (ROOT / path).is_file(), path


def test_a_sample_is_drawn_by_its_seed_from_different_lines():
    first = sampled(30, 0)
    places = [(module, mutant.line) for module, mutant in first]
    assert len(set(places)) == 30
    assert [place for place, _ in zip(places, sampled(30, 0), strict=True)] == places
    assert {(module, mutant.line) for module, mutant in sampled(30, 1)} != set(places)
    assert {module for module, _ in sampled(20, 0, ["models/optim"])} == {"models/optim"}


def test_the_table_counts_what_was_noticed_and_names_what_was_not():
    row = {"module": "models/optim", "line": 3, "kind": "constant", "before": "1", "after": "(2)"}
    outcomes = ["killed"] * 7 + ["timed out", "survived", "survived"]
    table = table_of([{**row, "outcome": outcome} for outcome in outcomes])
    assert "noticed 8 of 10, 80.0%" in table
    assert table.count("survived: supmim_scale/models/optim.py:3: constant: 1 -> (2)") == 2


@pytest.mark.slow
def test_nine_of_ten_sampled_faults_are_noticed(tmp_path):
    """In a process of its own, from which nothing that the tests import is missing or too much."""
    import subprocess
    import sys

    out = tmp_path / "rows.jsonl"
    script = [sys.executable, "tests/mutation/sample.py", "--count", "150", "--out", str(out)]
    subprocess.run(script, check=True, cwd=ROOT)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 150
    survived = sum(row["outcome"] == "survived" for row in rows)
    assert survived <= 15, table_of(rows)
