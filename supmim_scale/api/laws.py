"""Scaling laws of a table or of runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from supmim_scale.scaling.analysis import Options
from supmim_scale.scaling.answer import Laws, Source, fit_source
from supmim_scale.scaling.columns import Row
from supmim_scale.scaling.holdout import HELD_OUT_SHARE


def fit_law(
    table: Any,
    *,
    law: str | None = None,
    metric: str | None = None,
    params: str | None = None,
    data: str | None = None,
    compute: str | None = None,
    arm: str | None = None,
    cluster: Sequence[str] = (),
    where: Sequence[str] = (),
    flops_factor: float | None = None,
    frontier: bool = False,
    bootstrap: int = 200,
    hold_out: float = HELD_OUT_SHARE,
    budgets: Sequence[float] = (),
    delta: float | None = None,
    seed: int = 0,
) -> Laws:
    """Fit every arm of `table`: a CSV or Parquet file, a folder or folders of runs, a pandas
    DataFrame, or rows as mappings.

    Columns and options are those of `supmim-scale scaling fit`. Raises `UserError` where the data
    cannot identify the law.
    """
    named = {"metric": metric, "params": params, "data": data, "compute": compute, "arm": arm}
    columns: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    columns |= {"cluster": tuple(cluster), "where": tuple(where)}
    if flops_factor is not None:
        columns["flops_factor"] = flops_factor
    options = Options(law, bootstrap, hold_out, delta, seed, tuple(budgets), frontier)
    return fit_source(_source(table), columns, options)


def _source(table: Any) -> Source:
    if isinstance(table, (str, Path)):
        return [Path(table)]
    if hasattr(table, "to_dict"):  # a DataFrame
        rows: list[Path | Row] = table.to_dict("records")
        return rows
    return [dict(one) if isinstance(one, Mapping) else Path(one) for one in table]
