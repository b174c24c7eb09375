"""Laws are found again in points that were made from them, whatever the order and the units."""

import numpy as np
import pytest
from known_laws import TRUTH, grid, grid_points, power_points
from scipy.optimize import check_grad

from supmim_scale.scaling.bootstrap import bootstrap, widening
from supmim_scale.scaling.fit import HOFFMANN_DELTA, fit_law
from supmim_scale.scaling.laws import LAWS
from supmim_scale.scaling.points import make_points

EXAMPLES = {
    "power": [1.0, 0.2],
    "power_floor": [1.0, 0.2, -1.0],
    "saturating": [1.0, 0.2, -1.5, -1.0],
    "parametric": [-1.0, 0.3, -0.5, 0.4, 0.6],
    "broken": [0.5, 0.1, 0.2, 0.3, -0.5, -1.0],
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_gradients_are_those_of_finite_differences(name):
    law, x = LAWS[name], np.random.default_rng(0).normal(size=(1, len(LAWS[name].inputs)))
    error = check_grad(
        lambda theta: law.log_value(theta, x)[0][0],
        lambda theta: law.log_value(theta, x)[1][0],
        EXAMPLES[name],
    )
    assert error < 1e-6


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "parametric"])
def test_a_law_of_compute_is_found_again_without_noise(name):
    law, compute = LAWS[name], np.geomspace(1e15, 1e20, 24)
    theta = np.array(EXAMPLES[name])
    centre = np.log(compute).mean()
    metric = np.exp(law.log_value(theta, np.log(compute)[:, None] - centre)[0])
    fit = fit_law(law, make_points(metric, compute=compute))
    assert fit.predict(compute[:, None]) == pytest.approx(metric, rel=1e-3)
    if name != "broken":
        published = law.published(theta, np.array([centre]))
        assert list(fit.values.values()) == pytest.approx(list(published), rel=0.02)


def test_the_parametric_law_is_found_again_without_noise():
    values = fit_law(LAWS["parametric"], grid_points(noise=0.0)).values
    assert values == pytest.approx(TRUTH, rel=1e-3)


def test_a_fit_says_how_widely_its_points_lie_and_is_that_of_seed_0():
    points = grid_points()
    fit = fit_law(LAWS["parametric"], points)
    residuals = np.log(points.metric / fit.predict(points.inputs(fit.law)))
    assert fit.residuals == pytest.approx(residuals)
    assert fit.sigma == pytest.approx(1.4826 * np.median(abs(residuals)))
    assert fit.delta == pytest.approx(1.345 * fit.sigma, rel=0.2)  # of a first, rougher fit
    assert np.array_equal(fit.theta, fit_law(LAWS["parametric"], points, seed=0).theta)
    assert (fit.starts, 0 < fit.starts_agreeing <= 24) == (24, True)


def test_a_few_wild_points_do_not_move_a_fit():
    n, d, c, metric = grid(noise=0.002)
    fit = fit_law(LAWS["parametric"], make_points(metric, params=n, data=d, compute=c))
    metric[7] *= 1.5
    wild = fit_law(LAWS["parametric"], make_points(metric, params=n, data=d, compute=c))
    assert wild.values["alpha"] == pytest.approx(fit.values["alpha"], abs=0.02)
    assert wild.values["E"] == pytest.approx(fit.values["E"], rel=0.02)


def test_fits_and_intervals_are_equal_under_one_seed():
    points = grid_points()
    first, again = (fit_law(LAWS["parametric"], points, seed=3) for _ in range(2))
    assert np.array_equal(first.theta, again.theta)
    one, two = (bootstrap(first, 5, seed=3).thetas for _ in range(2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, bootstrap(first, 5, seed=4).thetas)


def test_the_seed_of_the_starts_does_not_change_the_fit():
    points = grid_points()
    fits = [fit_law(LAWS["parametric"], points, seed=seed).values for seed in (0, 1)]
    assert fits[0] == pytest.approx(fits[1], rel=1e-4)


def test_the_order_of_rows_changes_neither_fit_nor_intervals():
    n, d, c, metric = grid()
    clusters = np.arange(len(n)) // 2
    order = np.random.default_rng(1).permutation(len(n))
    fits = [
        fit_law(
            LAWS["parametric"],
            make_points(
                metric[rows], params=n[rows], data=d[rows], compute=c[rows], clusters=clusters[rows]
            ),
        )
        for rows in (np.arange(len(n)), order)
    ]
    assert np.array_equal(fits[0].theta, fits[1].theta)
    assert np.array_equal(bootstrap(fits[0], 4).thetas, bootstrap(fits[1], 4).thetas)


def test_units_change_amplitudes_alone():
    n, d, c, metric = grid()
    plain = fit_law(LAWS["parametric"], make_points(metric, params=n, data=d, compute=c)).values
    millions = fit_law(
        LAWS["parametric"], make_points(metric, params=n / 1e6, data=d / 1e9, compute=c)
    ).values
    for name in ("alpha", "beta", "E"):
        assert millions[name] == pytest.approx(plain[name], rel=1e-5)
    assert millions["A"] == pytest.approx(plain["A"] * 1e6 ** -plain["alpha"], rel=1e-4)


def test_the_published_threshold_is_taken_where_it_is_asked_for():
    assert fit_law(LAWS["parametric"], grid_points(), delta=HOFFMANN_DELTA).delta == 1e-3


def test_seeds_of_one_configuration_are_drawn_together():
    points = power_points(num=12, clusters=np.arange(12) // 3)
    spread = bootstrap(fit_law(LAWS["power"], points), 40)
    apart = bootstrap(fit_law(LAWS["power"], power_points(num=12)), 40)
    assert spread.widening > apart.widening
    assert not np.allclose(spread.thetas, apart.thetas)


def test_many_clusters_need_no_widening():
    assert widening(10_000, 5) == pytest.approx(1, abs=1e-3)
    assert widening(8, 5) > 1.5


def hits(name, repetitions, **how):
    """Shares of repetitions in which an interval, and the band ten times beyond, hold the truth."""
    truth = {"power": (30, 0.1), "power_floor": (30, 0.1, 0.1)}[name]
    floor = truth[2] if len(truth) > 2 else 0.0
    held, beyond = np.zeros(len(truth)), 0
    for seed in range(repetitions):
        points = power_points(seed=seed, noise=0.01, floor=floor)
        replicates = bootstrap(fit_law(LAWS[name], points, starts=6), seed=seed, **how)
        ends = np.array(list(replicates.intervals().values()))
        held += (ends[:, 0] <= truth) & (truth <= ends[:, 1])
        low, high = replicates.band(np.array([[1e20]]))
        beyond += int(low[0] <= 30 * 1e20**-0.1 + floor <= high[0])
    return [*(held / repetitions), beyond / repetitions]


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    assert all(0.78 <= share <= 1.0 for share in hits("power", 60, num=60))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["power", "power_floor"])
def test_intervals_hold_the_truth_in_85_to_95_of_100(name):
    assert all(0.85 <= share <= 0.95 for share in hits(name, 200, num=200))
