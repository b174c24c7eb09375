#!/usr/bin/env python3
"""Our scaling-law fits beside the published figures, and how often our intervals hold the truth.

    python benchmarks/scaling_fit.py FOLDER_OF_TABLES       fits of published data
    python benchmarks/scaling_fit.py --coverage 200         synthetic data from known laws

The folder holds `chinchilla_reconstructed.csv` (epoch-research/analyzing-chinchilla, read off
figure 4 of Hoffmann et al. 2022), `chinchilla_isoflops.csv` (Open-Athena/scaling-law-analysis) and
`openclip_zeroshot.csv` (LAION-AI/scaling-laws-openclip). They carry no licence: they are not in
this repository, only the rows that come out are. Rows are added to a JSON-lines file.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from supmim_scale.errors import EXIT_USER_ERROR, UserError
from supmim_scale.files.progress import progress
from supmim_scale.launch.provenance import provenance
from supmim_scale.scaling.bootstrap import bootstrap
from supmim_scale.scaling.chinchilla import Allocation, approach_1, approach_2, approach_3
from supmim_scale.scaling.columns import Columns, read_rows, to_points
from supmim_scale.scaling.fit import HOFFMANN_DELTA, Fit, fit_law
from supmim_scale.scaling.holdout import compare
from supmim_scale.scaling.identify import unsure
from supmim_scale.scaling.influence import Decisive, decisive_points
from supmim_scale.scaling.laws import LAWS
from supmim_scale.scaling.points import Points, make_points

RESULTS = Path(__file__).parents[1] / "results" / "scaling_fit.jsonl"
Row = dict[str, Any]

# Besiroglu et al. 2024 (arXiv 2404.10102), table 1: value, standard error; 240 points.
BESIROGLU = {
    "A": (482.01, 124.58),
    "alpha": (0.3478, 0.02),
    "B": (2085.43, 1293.23),
    "beta": (0.3658, 0.02),
    "E": (1.8172, 0.03),
}
BESIROGLU_A = (0.5126, 0.02)  # N_opt grows as C^a, same paper
# Hoffmann et al. 2022 (arXiv 2203.15556), table 2: a, b, each with its 10th and 90th percentile.
HOFFMANN = {
    1: ((0.50, 0.488, 0.502), (0.50, 0.501, 0.512)),
    2: ((0.49, 0.462, 0.534), (0.51, 0.483, 0.529)),
}
# Cherti et al. 2023 (arXiv 2212.07143), figure 1: ImageNet zero-shot error, LAION-2B.
CHERTI_EXPONENT = 0.11
DROPPED = 5  # points of highest loss that Besiroglu et al. leave out
# A multiply-add is 2, forward and backward three times forward: the table counts GMACs forward.
GMACS = "gmacs_total:6e9"


def main() -> int:
    """Measure, write rows, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", type=Path, nargs="?", help="folder of the published tables")
    parser.add_argument("--coverage", type=int, metavar="N", help="repetitions a synthetic law")
    parser.add_argument("--bootstrap", type=int, default=400, help="replicates (default: 400)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON lines to add to")
    arguments = parser.parse_args()
    if not arguments.tables and not arguments.coverage:
        parser.error("name a folder of tables, or --coverage N")
    origin = {**provenance(), "scipy": metadata.version("scipy")}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        for row in rows_of(arguments):
            row |= {"at": datetime.now(timezone.utc).isoformat(timespec="seconds"), **origin}
            with open(arguments.out, "a") as file:
                file.write(json.dumps(row) + "\n")
            print(line_of(row), flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


def rows_of(arguments: argparse.Namespace) -> Iterator[Row]:
    """Every row that was asked for, as it is measured."""
    if arguments.tables:
        yield from parametric_rows(arguments.tables, arguments.bootstrap)
        yield from approach_rows(arguments.tables, arguments.bootstrap)
        yield from openclip_rows(arguments.tables, arguments.bootstrap)
    if arguments.coverage:
        for name in TRUTHS:
            yield coverage_row(name, arguments.coverage)


def read(folder: Path, name: str, columns: Columns) -> Points:
    """A published table's points."""
    return to_points(read_rows(folder / name), columns, name)


def parametric_rows(folder: Path, num: int) -> Iterator[Row]:
    """Approach 3 on the reconstructed data, with and without the five points."""
    columns = Columns(params="Model Size", compute="Training FLOP", flops_factor=6)
    every = read(folder, "chinchilla_reconstructed.csv", columns)
    kept = every.take(np.sort(np.argsort(-every.metric)[DROPPED:]))
    for points, published in ((kept, BESIROGLU), (every, None)):
        began = time.perf_counter()
        fit = fit_law(LAWS["parametric"], points, delta=HOFFMANN_DELTA)
        decisive = [told(one) for one in decisive_points(fit)]
        took = time.perf_counter() - began
        replicates = bootstrap(fit, num, shown=True)
        row = fit_row(f"chinchilla parametric, {len(points)} points", fit) | {
            "seconds_without_bootstrap": took,
            "intervals": replicates.intervals(),
            "standard_errors": np.sqrt(np.diag(replicates.covariance())).tolist(),
            "decisive_points": decisive,
        }
        if published:
            row |= {
                "published": published,
                "published_from": "arXiv 2404.10102",
                "within_published_errors": all(
                    abs(fit.values[k] - value) <= error for k, (value, error) in published.items()
                ),
            }
        yield row
        if published:
            yield allocation_row(
                "chinchilla approach 3", approach_3(fit, replicates, 6.0), {"a": BESIROGLU_A}
            )


def told(found: Decisive) -> str:
    """What few points decide, without their values: those are not ours to copy."""
    return (
        f"{len(found.labels)} of {found.num_points} points, those with {found.end}, decide "
        f"{found.parameter}: {found.with_them:.4f} with them, {found.without:.4f} without"
    )


def approach_rows(folder: Path, num: int) -> Iterator[Row]:
    """Approaches 1 and 2 on the iso-FLOP table."""
    columns = Columns(data="tokens", compute="budget")
    points = read(folder, "chinchilla_isoflops.csv", columns)
    for number, approach in ((1, approach_1), (2, approach_2)):
        began = time.perf_counter()
        allocation = approach(points, num)
        row = allocation_row(
            f"chinchilla iso-FLOP approach {number}",
            allocation,
            dict(zip("ab", HOFFMANN[number], strict=True)),
        )
        yield row | {"seconds": time.perf_counter() - began}


def openclip_rows(folder: Path, num: int) -> Iterator[Row]:
    """ImageNet error against compute, with a floor, without, and held out."""
    columns = Columns(
        metric="1-acc1",
        data="-",
        compute=GMACS,
        run="-",
        arm="-",
        where=("downstream_dataset=imagenet1k", "upstream_dataset=LAION-2B"),
    )
    points = read(folder, "openclip_zeroshot.csv", columns)
    laws = [LAWS[name] for name in ("power", "power_floor", "saturating")]
    for law in laws:
        fit = fit_law(law, points)
        row = fit_row(f"openclip ImageNet error, LAION-2B, {law.name}", fit)
        row |= {"intervals": bootstrap(fit, num).intervals(), "unsure": unsure(fit)}
        if law.name == "power":
            row |= {"published": {"alpha": CHERTI_EXPONENT}, "published_from": "arXiv 2212.07143"}
        yield row
    held, refused = compare(laws, points, 0.25)
    yield {
        "name": "openclip ImageNet error, LAION-2B, held out",
        "kind": "held_out",
        "dear_points": len(held[0].held_out),
        "rms": {one.fit.law.name: one.rms for one in held},
        "bias": {one.fit.law.name: one.bias for one in held},
        "refused": {name: str(error) for name, error in refused.items()},
    }


def fit_row(name: str, fit: Fit) -> Row:
    """What a fit gave."""
    return {
        "name": name,
        "kind": "fit",
        "law": fit.law.name,
        "points": len(fit.points),
        "parameters": fit.values,
        "huber_delta": fit.delta,
        "objective": fit.objective,
        "residual_sigma": fit.sigma,
        "starts": fit.starts,
        "starts_agreeing": fit.starts_agreeing,
    }


def allocation_row(name: str, allocation: Allocation, published: dict[str, Any]) -> Row:
    """Exponents beside the published ones."""
    budgets = [text.partition(":")[0] for text in allocation.left_out]
    return {
        "name": name,
        "kind": "allocation",
        "exponents": dict(zip("ab", allocation.exponents, strict=True)),
        "intervals": dict(zip("ab", allocation.exponent_intervals() or (), strict=True)),
        "published": published,
        "budgets_left_out": budgets,
    }


def powers(compute: Any) -> Any:
    """The synthetic laws' common part."""
    return 30 * compute**-0.1


# Known laws: truth, design and curve. Twenty budgets over four decades, or six sizes by six.
TRUTHS: dict[str, tuple[tuple[float, ...], Callable[[Any], Any]]] = {
    "power": ((30, 0.1), powers),
    "power_floor": ((30, 0.1, 0.1), lambda c: powers(c) + 0.1),
    "saturating": ((2000, 0.2, 1e16, 0.1), lambda c: 2000 * (c + 1e16) ** -0.2 + 0.1),
    "parametric": (
        (482.01, 0.3478, 2085.43, 0.3658, 1.8172),
        lambda nd: 1.8172 + 482.01 * nd[0] ** -0.3478 + 2085.43 * nd[1] ** -0.3658,
    ),
}
NOISE = 0.01  # standard deviation of the log metric
REPLICATES = 200


def design(name: str, curve: Callable[[Any], Any]) -> tuple[Points, Any]:
    """Points without noise, and inputs ten times beyond the most expensive."""
    if name != "parametric":
        compute = np.geomspace(1e15, 1e19, 20)
        return make_points(curve(compute), compute=compute), np.array([[1e20]])
    grid = np.meshgrid(np.geomspace(1e6, 1e9, 6), np.geomspace(1e7, 1e10, 6))
    n, d = (side.ravel() for side in grid)
    beyond = np.array([[1e9 * 10**0.5, 1e10 * 10**0.5]])
    return make_points(curve((n, d)), params=n, data=d, compute=6 * n * d), beyond


def coverage_row(name: str, repetitions: int) -> Row:
    """How often 90 % intervals hold the truth, at the parameters and ten times beyond."""
    law, (truth, curve) = LAWS[name], TRUTHS[name]
    points, beyond = design(name, curve)
    far = float(curve(beyond[0] if name == "parametric" else beyond[0, 0]))
    held, held_far = np.zeros(len(truth)), 0
    with progress(f"coverage {name}", repetitions, "repetition") as bar:
        for seed in range(repetitions):
            noise = NOISE * np.random.default_rng(seed).normal(size=len(points))
            noisy = replace(points, metric=points.metric * np.exp(noise))
            fit = fit_law(law, noisy, starts=12)
            replicates = bootstrap(fit, REPLICATES, seed=seed)
            ends = np.array(list(replicates.intervals().values()))
            held += (ends[:, 0] <= truth) & (truth <= ends[:, 1])
            low, high = replicates.band(beyond)
            held_far += int(low[0] <= far <= high[0])
            bar.update()
    shares = (held / repetitions).tolist()
    return {
        "name": f"coverage of 90 % intervals, {name}",
        "kind": "coverage",
        "law": name,
        "repetitions": repetitions,
        "noise": NOISE,
        "points": len(points),
        "replicates": REPLICATES,
        "truth": dict(zip(law.parameters, truth, strict=True)),
        "coverage": dict(zip(law.parameters, shares, strict=True)),
        "coverage_ten_times_beyond": held_far / repetitions,
    }


def line_of(row: Row) -> str:
    """A row for the terminal."""
    if row["kind"] == "held_out":
        found = "  ".join(f"{name} {value:.2%}" for name, value in row["rms"].items())
        return f"{row['name']:48} {found}"
    if row["kind"] == "coverage":
        found = "  ".join(f"{name} {value:.1%}" for name, value in row["coverage"].items())
        return f"{row['name']:48} {found}  beyond {row['coverage_ten_times_beyond']:.1%}"
    figures = row.get("parameters") or row["exponents"]
    found = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
    published = row.get("published", {})
    beside = "  ".join(f"{name} {_shown(value)}" for name, value in published.items())
    decisive = "".join(f"\n  {text}" for text in row.get("decisive_points", ()))
    return (
        f"{row['name']:48} {found}" + (f"\n{'published':48} {beside}" if beside else "") + decisive
    )


def _shown(published: Any) -> str:
    if isinstance(published, float):
        return f"{published:g}"
    value, *rest = published
    return f"{value:g} ({', '.join(f'{v:g}' for v in rest)})"
