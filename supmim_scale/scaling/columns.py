"""From a CSV or Parquet table with named columns to points; what cannot be used is named."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet

from supmim_scale.errors import UserError, did_you_mean
from supmim_scale.scaling.laws import Array
from supmim_scale.scaling.points import Points, make_points

Row = dict[str, Any]

_NAMED = 5  # rows that a refusal names


@dataclass(frozen=True)
class Columns:
    """Which columns hold what. A number after a colon is its unit: `params_M:1e6`; `1-acc1` is an
    error rate out of an accuracy; `-` is no column.

    `cluster` names columns whose equal values a bootstrap draws together. By default these are
    the points of one run where a run has several, else the seeds of one configuration where there
    is a seed column, else each row stands alone.
    `flops_factor` K fills in the one of params, data, compute that is missing: C = K N D.
    """

    metric: str = "loss"
    params: str = "params"
    data: str = "samples_seen"
    compute: str = "train_flops"
    run: str = "run"
    seed: str = "seed"
    arm: str = "objective"
    cluster: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    flops_factor: float | None = None


def read_rows(path: Path) -> list[Row]:
    """Rows of a CSV or Parquet file; `row` is its place in the file, the header being 1."""
    if not path.is_file():
        raise UserError(str(path), "no such file", "a CSV or Parquet table", "check the path")
    try:
        if path.suffix.lower() == ".parquet":
            return [{**r, "row": i + 1} for i, r in enumerate(_parquet(path))]
        with open(path, newline="", encoding="utf-8-sig") as file:
            return [{**r, "row": i + 2} for i, r in enumerate(csv.DictReader(file))]
    except (pyarrow.ArrowInvalid, csv.Error, UnicodeDecodeError, OSError) as error:
        raise UserError(str(path), str(error), "a CSV or Parquet table", "check it") from None


def to_points(rows: Sequence[Row], columns: Columns, source: str) -> Points:
    """Points of a table's rows.

    Raises `UserError` for a column that is missing, and for rows with values that are no positive
    numbers or that come twice.
    """
    if not rows:
        raise UserError(source, "no rows", "a table with rows", "check the file")
    rows = [row for row in rows if all(_holds(row, test, source) for test in columns.where)]
    if not rows:
        raise UserError(source, "no row left", f"rows where {columns.where}", "fix --where")
    _require_named(rows[0], columns, source)
    metric = _values(rows, columns.metric, source)
    sizes = {name: _values(rows, getattr(columns, name), source) for name in _SIZES}
    sizes |= _filled(sizes, columns.flops_factor, source)
    arms = tuple(str(row.get(columns.arm, "")) for row in rows)
    _require_once(rows, [metric, *sizes.values()], columns, arms, source)
    return make_points(
        metric,
        **sizes,
        arms=arms,
        clusters=_clusters(rows, sizes, columns, arms),
        labels=tuple(_label(row, columns) for row in rows),
        metric_name=_name_of(columns.metric, rows[0]),
        data_wait=_fractions(rows, "data_wait"),
        mfu=_fractions(rows, "mfu"),
    )


_SIZES = ("params", "data", "compute")


def _parquet(path: Path) -> list[Row]:
    rows: list[Row] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


def _require_named(row: Row, columns: Columns, source: str) -> None:
    """The metric is there, and whatever other column was named; `-` stands for none."""
    usual, known = Columns(), [key for key in row if key not in ("row", None)]
    for which in ("metric", *_SIZES, "run", "seed", "arm"):
        spec = getattr(columns, which)
        name = _spec(spec, row)[0]
        is_wanted = which == "metric" or spec not in (getattr(usual, which), "-")
        if is_wanted and name not in row:
            advice = did_you_mean(name, known)
            raise UserError(source, f"no column '{name}'", f"the column of --{which}", advice)
    for name in columns.cluster:
        if name not in row:
            advice = did_you_mean(name, known)
            raise UserError("--cluster", f"'{name}'", f"a column of {source}", advice)


def _values(rows: Sequence[Row], spec: str, source: str) -> Array:
    """A column as positive finite numbers; empty where the table has no such column."""
    name, factor, is_share = _spec(spec, rows[0])
    if name not in rows[0]:
        return np.empty(0)
    values = np.array([_number(row[name]) for row in rows])
    values = (1 - values if is_share else values) * factor
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        where = [f"{row['row']} ({row[name]!r})" for row, b in zip(rows, bad, strict=True) if b]
        raise UserError(
            source,
            f"{name} in row {_listed(where)}",
            "positive finite numbers",
            "fix these rows, or leave them out with --where",
        )
    return values


def _spec(spec: str, row: Row) -> tuple[str, float, bool]:
    """(column, factor, whether it is one less the column) of `NAME`, `NAME:UNIT`, `1-NAME`."""
    name, _, unit = spec.rpartition(":")
    factor = _number(unit)
    if not name or spec in row or not math.isfinite(factor):
        name, factor = spec, 1.0
    if name not in row and name.startswith("1-"):
        return name.removeprefix("1-"), factor, True
    return name, factor, False


def _name_of(spec: str, row: Row) -> str:
    name, _, is_share = _spec(spec, row)
    return f"1 - {name}" if is_share else name


def _fractions(rows: Sequence[Row], name: str) -> Array | None:
    """A column of how the runs ran; None where the table lacks it or any value."""
    values = np.array([_number(row.get(name)) for row in rows])
    return values if np.isfinite(values).all() else None


def _number(text: object) -> float:
    try:
        return float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def _filled(sizes: dict[str, Array], factor: float | None, source: str) -> dict[str, Array]:
    """The one of params, data, compute that C = K N D gives."""
    missing = [name for name in _SIZES if not len(sizes[name])]
    if factor is None or not missing:
        return {}
    if len(missing) > 1:
        raise UserError(
            source,
            f"no columns for {' and '.join(missing)}",
            "at most one of params, data, compute missing",
            f"name them by {' '.join(f'--{name}' for name in missing)}",
        )
    n, d, c = (sizes[name] for name in _SIZES)
    name = missing[0]
    return {
        name: {
            "params": lambda: c / factor / d,
            "data": lambda: c / factor / n,
            "compute": lambda: factor * n * d,
        }[name]()
    }


def _holds(row: Row, test: str, source: str) -> bool:
    """Whether a row fulfils `NAME=TEXT`, `NAME<NUMBER` or `NAME>NUMBER`."""
    for sign in ("<", ">", "="):
        name, found, wanted = test.partition(sign)
        if not found:
            continue
        if name not in row:
            raise UserError(
                "--where", f"'{name}'", f"a column of {source}", did_you_mean(name, row)
            )
        if sign == "=":
            return str(row[name]) == wanted
        value, bound = _number(row[name]), _number(wanted)
        return value < bound if sign == "<" else value > bound
    raise UserError("--where", f"'{test}'", "NAME=TEXT, NAME<NUMBER or NAME>NUMBER", "fix it")


def _require_once(
    rows: Sequence[Row], columns: Sequence[Array], names: Columns, arms: Sequence[str], source: str
) -> None:
    """No two rows alike, and no run of one configuration and seed with two results."""
    told_apart = [key for key in (names.run, names.seed) if key in rows[0]]
    figures = [c for c in (columns if not told_apart else columns[1:]) if len(c)]
    seen: dict[tuple[object, ...], Row] = {}
    twice = []
    for i, (row, arm) in enumerate(zip(rows, arms, strict=True)):
        key = (arm, *(row[k] for k in told_apart), *(float(c[i]) for c in figures))
        if key in seen:
            twice.append(f"{row['row']} (as {seen[key]['row']})")
        seen.setdefault(key, row)
    if twice:
        raise UserError(
            source, f"duplicated row {_listed(twice)}", "every run once", "remove one of each"
        )


def _clusters(
    rows: Sequence[Row], sizes: dict[str, Array], columns: Columns, arms: Sequence[str]
) -> Any:
    """A number for each row's cluster."""
    runs = [row.get(columns.run, i) for i, row in enumerate(rows)]
    keys: list[tuple[object, ...]]
    if columns.cluster:
        keys = [tuple(row[name] for name in columns.cluster) for row in rows]
    elif len(set(runs)) < len(runs):
        keys = [(run,) for run in runs]
    elif columns.seed in rows[0]:
        known = [sizes[name] for name in ("params", "data") if len(sizes[name])]
        known = known or [sizes["compute"]]
        keys = [(arm, *(float(c[i]) for c in known)) for i, arm in enumerate(arms)]
    else:
        keys = [(i,) for i in range(len(rows))]
    numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys])


def _label(row: Row, columns: Columns) -> str:
    return str(row[columns.run]) if row.get(columns.run) else f"row {row['row']}"


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
    return ", ".join(words[:_NAMED]) + more
