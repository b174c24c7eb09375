"""Compute-optimal sizes by three approaches, influence, held-out errors, budgets, arms."""

import numpy as np
import pytest
from known_laws import TRUTH, grid, grid_points, iso_flop, loss, optimal_params, power_points

from supmim_scale.errors import UserError
from supmim_scale.scaling.analysis import Options, analyse, analyse_arms
from supmim_scale.scaling.arms import gaps_of
from supmim_scale.scaling.bootstrap import bootstrap
from supmim_scale.scaling.chinchilla import (
    approach_1,
    approach_2,
    approach_3,
    flops_factor,
    iso_flop_groups,
)
from supmim_scale.scaling.fit import fit_law
from supmim_scale.scaling.holdout import compare, split
from supmim_scale.scaling.influence import decisive_points
from supmim_scale.scaling.laws import LAWS
from supmim_scale.scaling.points import make_points

A = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])  # N_opt grows as C^a


def iso_points(**how):
    n, d, c, metric = iso_flop(**how)
    return make_points(metric, params=n, data=d, compute=c)


@pytest.mark.parametrize("approach", [approach_1, approach_2])
def test_minima_of_equal_compute_give_the_exponents_of_the_law(approach):
    found = approach(iso_points(sizes=15, span=2.5))
    assert found.exponents == pytest.approx((A, 1 - A), abs=0.02)
    assert found.sizes(1e19)[0] == pytest.approx(optimal_params(1e19), rel=0.1)


def test_the_parametric_law_gives_the_published_closed_form():
    points = grid_points(noise=0.0)
    found = approach_3(fit_law(LAWS["parametric"], points), None, flops_factor(points)[0])
    assert found.exponents == pytest.approx((A, 1 - A), rel=1e-3)
    n, d = found.sizes(1e21)
    assert n == pytest.approx(optimal_params(1e21), rel=1e-2)
    assert 6 * n * d == pytest.approx(1e21)


def test_the_closed_form_is_where_the_law_is_lowest():
    n = np.geomspace(1e8, 1e11, 20_001)
    assert n[np.argmin(loss(n, 1e21 / 6 / n))] == pytest.approx(optimal_params(1e21), rel=1e-3)


def test_budgets_are_told_apart_by_gaps_in_compute():
    groups = iso_flop_groups(iso_points(budgets=(1e17, 2e17, 1e18), sizes=5))
    assert [len(group) for group in groups] == [5, 5, 5]


def test_a_rung_without_a_minimum_is_left_out_by_name():
    n, d, c, metric = iso_flop(sizes=9)
    kept = (c != 1e18) | (n > np.median(n[c == 1e18]) * 1.2)
    points = make_points(metric[kept], params=n[kept], data=d[kept], compute=c[kept])
    found = approach_2(points)
    assert len(found.rungs) == 3
    assert len(found.left_out) == 1
    assert found.left_out[0].startswith(
        "1e+18: no minimum between its sizes, missing: params below"
    )


def test_exponents_come_with_intervals_that_hold_the_truth():
    found = approach_2(iso_points(noise=0.002, sizes=9), 50)
    (low, high), _ = found.exponent_intervals()
    assert low < A < high
    (low, high), _ = found.size_intervals(1e19)
    assert low < found.sizes(1e19)[0] < high


def test_a_few_points_that_decide_an_exponent_are_named():
    rng = np.random.default_rng(0)
    n, d = (a.ravel() for a in np.meshgrid(np.geomspace(1e7, 1e9, 10), np.geomspace(3e8, 3e9, 12)))
    metric = loss(n, d) * np.exp(0.002 * rng.normal(size=len(n)))
    n, d = np.append(n, [3e8, 1e9, 2e9]), np.append(d, [5e7, 5e7, 5e7])
    metric = np.append(metric, 1.4 * loss(n[-3:], d[-3:]))
    labels = tuple(f"run {i}" for i in range(len(n)))
    points = make_points(metric, params=n, data=d, compute=6 * n * d, labels=labels)
    (found,) = decisive_points(fit_law(LAWS["parametric"], points))
    assert found.parameter == "beta"
    assert set(found.labels) == {"run 120", "run 121", "run 122"}
    assert str(found).startswith("3 of 123 points, those with the ")


def test_no_points_decide_an_exponent_where_noise_is_even():
    assert decisive_points(fit_law(LAWS["parametric"], grid_points(sizes=8, datas=8))) == []


def test_the_dear_part_is_what_costs_most():
    cheap, dear = split(power_points(num=20), 0.25)
    assert len(dear) == 5
    assert cheap.compute.max() < dear.compute.min()
    with pytest.raises(UserError, match=r"--hold-out.*0 and 1"):
        split(power_points(), 1.0)


def test_laws_are_ranked_by_what_they_did_not_see():
    points = power_points(floor=0.3, noise=0.001, low=1e14)
    held, refused = compare([LAWS["power"], LAWS["power_floor"], LAWS["broken"]], points, 0.25)
    assert held[0].fit.law.name != "power"
    assert held[-1].fit.law.name == "power"
    assert held[-1].bias < -0.01  # a line goes on falling where the floor holds
    assert {one.fit.law.name for one in held} | set(refused) == {"power", "power_floor", "broken"}


def test_a_budget_buys_what_the_law_says_with_an_interval():
    said = analyse(
        grid_points(noise=0.002), Options(num_bootstrap=20, dear_share=0, budgets=(1e21,))
    )
    (bought,) = said.purchases
    n = optimal_params(1e21)
    assert bought.metric == pytest.approx(loss(n, 1e21 / 6 / n), rel=0.01)
    assert bought.metric_interval[0] < bought.metric < bought.metric_interval[1]
    assert bought.params_interval[0] < n < bought.params_interval[1]
    assert bought.beyond == pytest.approx(1e21 / 6e19)


def test_the_frontier_leaves_out_what_a_cheaper_run_beats():
    points = grid_points(noise=0.0)
    kept = points.frontier()
    assert 4 <= len(kept) < len(points)
    assert (np.diff(kept.metric) < 0).all()
    assert analyse(points, Options("power", 0, 0, only_frontier=True)).points.metric_name == "loss"


def two_arms(gain):
    n, d, c, metric = grid(noise=0.001)
    better = grid(noise=0.001, seed=1)[3] * gain
    both = [np.concatenate([column, column]) for column in (n, d, c)]
    arms = ("supervised",) * len(n) + ("supervised + MIM",) * len(n)
    return make_points(np.append(metric, better), params=both[0], data=both[1], compute=both[2],
                       arms=arms)  # fmt: skip


def test_the_gap_between_arms_has_its_sign_and_its_interval():
    (gap,) = gaps_of(analyse_arms(two_arms(0.97), Options(num_bootstrap=20, dear_share=0)))
    assert (gap.baseline, gap.other) == ("supervised", "supervised + MIM")
    assert (gap.low > 0).all()
    best = optimal_params(gap.compute[-1])
    assert gap.gap[-1] == pytest.approx(0.03 * loss(best, gap.compute[-1] / 6 / best), rel=0.1)


def test_equal_arms_have_a_gap_about_zero():
    (gap,) = gaps_of(analyse_arms(two_arms(1.0), Options(num_bootstrap=30, dear_share=0)))
    middle = len(gap.gap) // 2
    assert gap.low[middle] < 0 < gap.high[middle]


def test_an_arm_that_cannot_be_fitted_is_named():
    points = two_arms(1.0)
    few = [i for i, arm in enumerate(points.arms) if arm == "supervised" or i < 9]
    with pytest.raises(UserError, match=r"supervised \+ MIM, law parametric: found \d distinct"):
        analyse_arms(points.take(np.array(few)), Options(num_bootstrap=0))


def test_covariance_and_intervals_agree_about_the_spread():
    replicates = bootstrap(fit_law(LAWS["power"], power_points(num=40, floor=0.0)), 100)
    spread = np.sqrt(np.diag(replicates.covariance()))
    low, high = replicates.intervals()["alpha"]
    assert (high - low) / 2 == pytest.approx(1.645 * spread[1], rel=0.35)
