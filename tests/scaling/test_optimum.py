"""Compute-optimal sizes by three approaches, influence, held-out errors, budgets, arms."""

import numpy as np
import pytest
from known_laws import TRUTH, grid, grid_points, iso_flop, loss, optimal_params, power_points
from scipy import stats

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
    assert found.approach == {approach_1: 1, approach_2: 2}[approach]
    assert found.exponents == pytest.approx((A, 1 - A), abs=0.02)
    assert found.sizes(1e19)[0] == pytest.approx(optimal_params(1e19), rel=0.1)


def test_the_parametric_law_gives_the_published_closed_form():
    points = grid_points(noise=0.0)
    found = approach_3(fit_law(LAWS["parametric"], points), None, flops_factor(points)[0])
    assert found.approach == 3
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


@pytest.mark.parametrize(("side", "missing"), [(1, "below"), (-1, "above")])
def test_a_rung_says_on_which_side_sizes_are_missing(side, missing):
    n, d, c, metric = iso_flop(sizes=9)
    middle = np.median(n[c == 1e18])
    kept = (c != 1e18) | (side * (n - middle * 1.2**side) > 0)
    points = make_points(metric[kept], params=n[kept], data=d[kept], compute=c[kept])
    (left_out,) = approach_2(points).left_out
    assert f"missing: params {missing} " in left_out


def test_approach_1_names_the_budgets_that_it_left_out_and_wants_three():
    n, d, c, metric = iso_flop(sizes=9)
    kept = (c != 1e18) | (n > np.median(n[c == 1e18]) * 1.2)
    points = make_points(metric[kept], params=n[kept], data=d[kept], compute=c[kept])
    found = approach_1(points)
    assert [round(np.log10(rung.compute)) for rung in found.rungs] == [17, 19, 20]
    assert found.left_out[0].endswith("is its smallest or largest")
    few = points.take(np.flatnonzero(points.compute < 2e19))
    with pytest.raises(UserError, match=r"approach 1: found 2 .*missing: 1e\+18: its best run"):
        approach_1(few)


def upside_down(budgets):
    """Iso-FLOP runs whose metric of these budgets has its maximum where the others' minimum is."""
    n, d, c, metric = iso_flop(sizes=9)
    for budget in budgets:
        rung = c == budget
        metric[rung] = 2 * metric[rung].min() + 1 - metric[rung]
    return make_points(metric, params=n, data=d, compute=c)


def test_a_maximum_of_an_iso_flop_curve_is_not_taken_for_its_minimum():
    found = approach_2(upside_down([1e18]))
    assert [round(np.log10(rung.compute)) for rung in found.rungs] == [17, 19, 20]
    assert len(found.left_out) == 1
    assert found.left_out[0].startswith("1e+18: no minimum between its sizes")
    straight = approach_2(iso_points(sizes=9))
    kept = [rung for rung in straight.rungs if round(np.log10(rung.compute)) != 18]
    for rung, same in zip(found.rungs, kept, strict=True):
        assert (rung.params, rung.data) == (same.params, same.data)
        assert rung.parabola[0] > 0
    with pytest.raises(UserError, match="approach 2: found 2 usable budgets"):
        approach_2(upside_down([1e18, 1e19]))


def test_a_rung_is_the_vertex_of_an_exact_parabola():
    """metric = 2 + 0.1 (log N - log 1e8)^2 at each budget, and D = C / 6 N."""
    rows = [
        (n, c / 6 / n, c, 2 + 0.1 * np.log(n / 1e8 / (c / 1e18) ** 0.5) ** 2)
        for c in (1e17, 1e18, 1e19)
        for n in np.geomspace(3e7, 4e8, 5) * (c / 1e18) ** 0.5
    ]
    n, d, c, metric = map(np.array, zip(*rows, strict=True))
    found = approach_2(make_points(metric, params=n, data=d, compute=c))
    assert found.exponents == pytest.approx((0.5, 0.5), abs=1e-9)
    assert found.sizes(1e18) == pytest.approx((1e8, 1e18 / 6e8), rel=1e-9)
    middle = found.rungs[1]
    assert (middle.compute, middle.params, middle.metric) == pytest.approx((1e18, 1e8, 2), rel=1e-9)
    at = np.log(np.array([3e7, 1e8, 4e8]))
    expected = 2 + 0.1 * (at - np.log(1e8)) ** 2
    assert np.polyval(middle.parabola, at) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("clusters", [25, 8])
def test_the_intervals_of_approach_3_are_its_replicates_widened(clusters):
    """Quantiles at 5 and 95 % of the replicates' closed form, moved away from the fit's figure."""
    n, d, c, metric = grid()
    points = make_points(metric, params=n, data=d, compute=c, clusters=np.arange(25) % clusters)
    fit = fit_law(LAWS["parametric"], points, starts=8)
    replicates = bootstrap(fit, 12)
    found = approach_3(fit, replicates, 6.0)
    factor = np.sqrt(clusters / (clusters - 5)) * stats.t.ppf(0.95, clusters - 5) / 1.6448536
    assert found.widening == pytest.approx(factor, rel=1e-6)

    def widened(samples, at):
        return [at + factor * (end - at) for end in np.quantile(samples, [0.05, 0.95])]

    alpha, beta = replicates.values[:, 1], replicates.values[:, 3]
    a, b = found.exponents
    assert (a, b) == pytest.approx(
        tuple(fit.values[x] / (fit.values["alpha"] + fit.values["beta"]) for x in ("beta", "alpha"))
    )
    (low, high), (low_b, high_b) = found.exponent_intervals()
    assert [low, high] == pytest.approx(widened(beta / (alpha + beta), a))
    assert [low_b, high_b] == pytest.approx(widened(alpha / (alpha + beta), b))

    def best(values, compute):
        big_a, alpha, big_b, beta = values[:4]
        g = (alpha * big_a / (beta * big_b)) ** (1 / (alpha + beta))
        return g * (compute / 6) ** (beta / (alpha + beta))

    at = np.log(best(list(fit.values.values()), 1e21))
    samples = np.log([best(values, 1e21) for values in replicates.values])
    (low, high), (low_d, high_d) = found.size_intervals(1e21)
    assert np.log(found.sizes(1e21)[0]) == pytest.approx(at)
    assert [np.log(low), np.log(high)] == pytest.approx(widened(samples, at))
    assert np.log([low_d, high_d]) == pytest.approx(
        widened(np.log(1e21 / 6) - samples, np.log(1e21 / 6) - at)
    )
    assert approach_3(fit, None, 6.0).exponent_intervals() is None


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


def test_the_held_out_part_is_what_costs_most():
    cheap, held_out = split(power_points(num=20), 0.25)
    assert len(held_out) == 5
    assert cheap.compute.max() < held_out.compute.min()
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
        grid_points(noise=0.002), Options(num_bootstrap=20, held_out_share=0, budgets=(1e21,))
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
    return make_points(
        np.append(metric, better), params=both[0], data=both[1], compute=both[2], arms=arms
    )


def test_the_gap_between_arms_has_its_sign_and_its_interval():
    (gap,) = gaps_of(analyse_arms(two_arms(0.97), Options(num_bootstrap=20, held_out_share=0)))
    assert (gap.baseline, gap.other) == ("supervised", "supervised + MIM")
    assert (gap.low > 0).all()
    best = optimal_params(gap.compute[-1])
    assert gap.gap[-1] == pytest.approx(0.03 * loss(best, gap.compute[-1] / 6 / best), rel=0.1)


def test_equal_arms_have_a_gap_about_zero():
    (gap,) = gaps_of(analyse_arms(two_arms(1.0), Options(num_bootstrap=30, held_out_share=0)))
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
