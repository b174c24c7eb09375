"""What a study takes on the cluster that it names: GPU-hours and money, from the planner."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from supmim_scale.build.model import joint_shape
from supmim_scale.config import RunConfig
from supmim_scale.errors import UserError, did_you_mean
from supmim_scale.planner import Cluster, cluster_of
from supmim_scale.planner.setting import RecipeMemory
from supmim_scale.planner.speed import MFU, Assumed, step_time
from supmim_scale.studies.design import Design, DesignedRun

_KEYS = ("gpu", "nodes", "gpus_per_node", "network", "price", "mfu")


@dataclass(frozen=True)
class RunCost:
    """The cost of the part that a run does itself; `usd` None: the study states no price."""

    images_per_s: float
    gpu_hours: float
    usd: float | None


def costs(design: Design) -> list[RunCost] | None:
    """The cost of every run, of steps only; None where the study names no GPU. Raises `UserError`
    for a cluster that the planner does not know or that a run's batch does not divide over."""
    given = design.cluster
    for key in given:
        if key not in _KEYS:
            fix = did_you_mean(str(key), _KEYS)
            raise UserError(f"cluster.{key}", "an unknown key", "a cluster's key", fix)
    if "gpu" not in given:
        return None
    cluster, price = _cluster(given), _number(given, "price")
    assumed = Assumed(_number(given, "mfu") or MFU)
    rates: dict[RunConfig, float] = {}
    return [_cost(one, cluster, price, assumed, rates) for one in design.runs]


def _cost(
    one: DesignedRun,
    cluster: Cluster,
    price: float | None,
    assumed: Assumed,
    rates: dict[RunConfig, float],
) -> RunCost:
    # How fast a step is does not depend on how many there are.
    alike = replace(one.config, seed=0, optim=replace(one.config.optim, steps=None))
    if alike not in rates:
        rates[alike] = _images_per_s(one.config, cluster, assumed)
    seconds = (one.images - one.shared_images) / rates[alike]
    hours = seconds / 3600 * cluster.ranks
    return RunCost(rates[alike], hours, None if price is None else hours * price)


def _images_per_s(config: RunConfig, cluster: Cluster, assumed: Assumed) -> float:
    planned = RecipeMemory(config)
    setting = planned.setting(config, cluster.ranks)
    shape = joint_shape(config, planned.out_features)
    return step_time(setting, cluster, planned.size, shape, assumed).images_per_s


def _cluster(given: Mapping[str, Any]) -> Cluster:
    nodes, gpus = given.get("nodes", 1), given.get("gpus_per_node", 8)
    if type(nodes) is not int or type(gpus) is not int:
        raise UserError(
            "cluster", f"{nodes!r} nodes of {gpus!r} GPUs", "whole numbers", "write nodes: 1"
        )
    return cluster_of(str(given["gpu"]), nodes, gpus, str(given.get("network", "400G")))


def _number(given: Mapping[str, Any], key: str) -> float | None:
    value = given.get(key)
    if value is not None and (type(value) not in (int, float) or not value > 0):
        raise UserError(f"cluster.{key}", f"{value!r}", "a number above 0", f"write {key}: 2.5")
    if key == "mfu" and value is not None and value > 1:
        raise UserError("cluster.mfu", f"{value!r}", "a share up to 1", "write mfu: 0.45")
    return value
