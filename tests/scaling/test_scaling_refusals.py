"""What the data cannot tell is refused in one line, and the missing rungs are named."""

import numpy as np
import pytest
from known_laws import grid, iso_flop, loss, power_points, write

from supmim_scale.errors import UserError
from supmim_scale.scaling.analysis import Options, analyse
from supmim_scale.scaling.chinchilla import approach_2
from supmim_scale.scaling.columns import Columns, read_rows, to_points
from supmim_scale.scaling.identify import require_identifiable
from supmim_scale.scaling.laws import LAWS
from supmim_scale.scaling.points import make_points


def refusal(law, points):
    with pytest.raises(UserError) as caught:
        analyse(points, Options(law, num_bootstrap=0, held_out_share=0))
    return str(caught.value)


def points_of(n, d):
    return make_points(loss(n, d), params=n, data=d, compute=6 * n * d)


def test_fewer_points_than_parameters():
    said = refusal("power_floor", power_points(num=3))
    assert "found 3 distinct compute; expected at least 4" in said
    assert "missing: 1 more rungs, for instance compute 3e+19" in said


def test_one_model_size():
    d = np.geomspace(1e7, 1e10, 8)
    said = refusal("parametric", points_of(np.full(8, 1e7), d))
    assert "1 distinct params (10 M)" in said
    assert "missing: runs at params about 3.33 M or 30 M" in said


def test_two_data_sizes():
    n, d = (a.ravel() for a in np.meshgrid(np.geomspace(1e6, 1e9, 5), [1e8, 1e9]))
    said = refusal("parametric", points_of(n, d))
    assert "2 distinct data (100 M, 1 G)" in said
    assert "missing: runs at data about 33.3 M or 3 G" in said


def test_data_in_proportion_to_size():
    n = np.geomspace(1e6, 1e9, 10)
    said = refusal("parametric", points_of(n, 20 * n))
    assert "params and data on one line" in said
    assert "missing: params 1 M with data 20 G, params 1 G with data 20 M" in said


def test_too_small_a_span():
    said = refusal("power_floor", power_points(low=1e18, high=1e19))
    assert "compute over a factor 10; expected a factor 30 or more" in said
    assert "missing: runs at compute of 3.33e+17 or below, or of 3e+19 or above" in said


def test_a_bend_below_the_cheapest_run():
    said = refusal("saturating", power_points(floor=0.0, noise=0.01, seed=1))
    assert "data that leave d outside of what was run" in said
    assert "missing: more runs on both sides of the bend, some below 1e+15" in said


def test_iso_flop_rungs_whose_minimum_lies_outside():
    n, d, c, metric = iso_flop()
    kept = n > np.array([np.median(n[c == budget]) for budget in c])
    points = make_points(metric[kept], params=n[kept], data=d[kept], compute=c[kept])
    with pytest.raises(UserError, match=r"missing: 1e\+17.*needed"):
        approach_2(points)
    wide = iso_flop(sizes=14)
    kept = wide[0] > np.array([1.2 * np.median(wide[0][wide[2] == budget]) for budget in wide[2]])
    n, d, c, metric = (column[kept] for column in wide)
    with pytest.raises(UserError, match=r"no minimum between its sizes, missing: params below"):
        approach_2(make_points(metric, params=n, data=d, compute=c))


def test_a_full_grid_is_not_refused():
    n, d, *_ = grid(3, 4)
    require_identifiable(LAWS["parametric"], points_of(n, d))


@pytest.fixture
def table(tmp_path):
    def make(**changed):
        columns = {
            "params": [1e6, 1e7, 1e8],
            "samples_seen": [1e8, 1e9, 1e10],
            "train_flops": [1e15, 1e16, 1e17],
            "loss": [3.0, 2.5, 2.2],
        }
        return write(tmp_path / "table.csv", **{**columns, **changed})

    return make


def read(path, **columns):
    return to_points(read_rows(path), Columns(**columns), "table.csv")


@pytest.mark.parametrize(
    ("loss_column", "named"),
    [
        ([3.0, "nan", 2.2], "loss in row 3 ('nan')"),
        ([3.0, 0, 2.2], "loss in row 3 ('0')"),
        ([3.0, 2.5, -2.2], "loss in row 4 ('-2.2')"),
        ([3.0, "", 2.2], "loss in row 3 ('')"),
        (["inf", 2.5, 2.2], "loss in row 2 ('inf')"),
    ],
)
def test_rows_that_are_no_positive_numbers_are_named(table, loss_column, named):
    with pytest.raises(UserError) as caught:
        read(table(loss=loss_column))
    assert named in str(caught.value)


def test_a_row_that_comes_twice_is_named(table):
    same = {
        "params": [1e6, 1e7, 1e7],
        "samples_seen": [1e8, 1e9, 1e9],
        "train_flops": [1e15, 1e16, 1e16],
    }
    with pytest.raises(UserError, match=r"duplicated row 4 \(as 3\)"):
        read(table(**same, loss=[3.0, 2.5, 2.5]))
    with pytest.raises(UserError, match=r"duplicated row 4 \(as 3\)"):
        read(table(**same, seed=[0, 1, 1]))
    assert len(read(table(**same, seed=[0, 1, 2]))) == 3


def test_a_missing_column_is_named_with_what_there_is(table):
    with pytest.raises(UserError, match=r"no column 'top1'.*choose from loss, params"):
        read(table(), metric="top1")
    with pytest.raises(UserError, match=r"no column 'flops'.*--compute; choose from|did you mean"):
        read(table(), compute="flops")
    with pytest.raises(UserError, match=r"no compute column.*--compute"):
        read(table(), compute="-").column("compute")


def test_a_test_of_rows_must_be_readable(table):
    with pytest.raises(UserError, match=r"--where.*NAME=TEXT"):
        read(table(), where=("loss",))
    with pytest.raises(UserError, match=r"did you mean params"):
        read(table(), where=("param=1",))


def test_what_is_drawn_together_follows_runs_and_seeds(table):
    def clusters(**changed):
        cluster = changed.pop("cluster", ())
        return read(table(**changed), cluster=cluster).clusters.tolist()

    alike = {"params": [1e6, 1e6, 1e8], "samples_seen": [1e8, 1e8, 1e10]}
    assert clusters() == [0, 1, 2]
    assert clusters(**alike, seed=[0, 1, 0]) == [0, 0, 1]
    assert clusters(**alike, seed=[0, 1, 0], run=["a", "b", "a"]) == [0, 1, 0]
    assert clusters(**alike, seed=[0, 1, 0], run=["a", "b", "c"]) == [0, 0, 1]
    assert clusters(seed=[7, 8, 7], cluster=("seed",)) == [0, 1, 0]
    with pytest.raises(UserError, match=r"--cluster.*did you mean seed"):
        clusters(seed=[7, 8, 7], cluster=("sed",))
