"""Points of known laws, and tables of them as files."""

import csv

import numpy as np

from supmim_scale.scaling.points import make_points

# Besiroglu et al. 2024 (arXiv 2404.10102): A, alpha, B, beta, E.
TRUTH = {"A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658, "E": 1.8172}


def loss(n, d):
    return TRUTH["E"] + TRUTH["A"] * n ** -TRUTH["alpha"] + TRUTH["B"] * d ** -TRUTH["beta"]


def grid(sizes=5, datas=5, seed=0, noise=0.005):
    """A grid of model and data sizes with noise: params, data, compute, loss."""
    n, d = np.meshgrid(np.geomspace(1e6, 1e9, sizes), np.geomspace(1e7, 1e10, datas))
    n, d = n.ravel(), d.ravel()
    draws = np.random.default_rng(seed).normal(size=len(n))
    return n, d, 6 * n * d, loss(n, d) * np.exp(noise * draws)


def grid_points(**how):
    n, d, c, metric = grid(**how)
    return make_points(metric, params=n, data=d, compute=c)


def iso_flop(budgets=(1e17, 1e18, 1e19, 1e20), sizes=7, noise=0.0, span=3.0):
    """Runs of equal compute around the optimum: params, data, compute, loss."""
    rows = []
    rng = np.random.default_rng(0)
    for budget in budgets:
        middle = optimal_params(budget)
        for n in np.geomspace(middle / span, middle * span, sizes):
            d = budget / 6 / n
            rows.append((n, d, budget, loss(n, d) * np.exp(noise * rng.normal())))
    return tuple(np.array(rows).T)


def optimal_params(compute):
    """Hoffmann et al. 2022, equation 4."""
    a, alpha, b, beta = (TRUTH[name] for name in ("A", "alpha", "B", "beta"))
    g = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
    return g * (compute / 6) ** (beta / (alpha + beta))


def power_points(num=20, noise=0.005, seed=0, floor=0.1, low=1e15, high=1e19, clusters=None):
    c = np.geomspace(low, high, num)
    draws = np.random.default_rng(seed).normal(size=num)
    return make_points((30 * c**-0.1 + floor) * np.exp(noise * draws), compute=c, clusters=clusters)


def write(path, **columns):
    """A CSV table with these columns, in this order."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path
