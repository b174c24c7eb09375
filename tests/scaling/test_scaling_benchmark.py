"""The benchmark of scaling fits: rows from tables named by the user, refusals, coverage."""

import importlib.util
import json
import sys

import numpy as np
import pytest
from known_laws import grid, iso_flop, write


@pytest.fixture(scope="module")
def benchmark():
    return importlib.import_module("benchmarks.laws.scaling_fit")


def test_a_folder_without_tables_is_refused(benchmark, tmp_path, monkeypatch, capsys):
    words = ["scaling_fit.py", str(tmp_path), "--out", str(tmp_path / "rows.jsonl")]
    monkeypatch.setattr(sys, "argv", words)
    assert benchmark.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "chinchilla_reconstructed.csv: found no such file" in line


def test_rows_stand_beside_the_published_figures(benchmark, tmp_path):
    n, d, c, metric = grid(8, 8)
    columns = {"Model Size": n, "Training FLOP": c, "loss": metric}
    write(tmp_path / "chinchilla_reconstructed.csv", **columns)
    n, d, c, metric = iso_flop(sizes=9, noise=0.001)
    write(tmp_path / "chinchilla_isoflops.csv", params=n, tokens=d, budget=c, loss=metric)
    rows = [*benchmark.parametric_rows(tmp_path, 4), *benchmark.approach_rows(tmp_path, 4)]
    first, third, every, one, two = rows
    assert (first["points"], every["points"]) == (59, 64)
    assert first["within_published_errors"]
    assert first["parameters"].keys() == first["published"].keys()
    assert third["exponents"]["a"] == pytest.approx(0.5126, abs=0.02)
    assert (one["name"][-1], two["name"][-1]) == ("1", "2")
    assert "published" in benchmark.line_of(first)
    json.dumps(rows)


def test_coverage_counts_how_often_intervals_hold_the_truth(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "REPLICATES", 4)
    row = benchmark.coverage_row("power", 2)
    assert row["repetitions"] == 2
    assert set(row["coverage"]) == {"A", "alpha"}
    assert np.isin(row["coverage_ten_times_beyond"], [0, 0.5, 1])
