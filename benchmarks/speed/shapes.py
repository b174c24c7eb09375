#!/usr/bin/env python3
"""What share of the roof each model's own matrix products reach by themselves.

    python benchmarks/shapes.py                                    small models, made for a CPU
    python benchmarks/shapes.py --models vit_l14 vit_h14 vit_g14 --micro-batch 64

The step's products and attention are found by running the joint model on fake tensors, so nothing
is assumed of its shapes; each distinct one is then timed alone, on random operands, at the step's
type. Their sum is the least that a step can take here; its share of the roof and of the vendor's
peak is the MFU to expect of a step that does nothing else, and the expectation to hold a measured
one against. Rows go to the same file as throughput.py's; throughput_report.py shows them.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.rows.pages import percent
from benchmarks.rows.ranks import Job, Row, add_models_flag, append, gpu_count, origin
from benchmarks.speed.measuring import fastest, matmul_roof
from benchmarks.speed.steps import CODES, recipe_of
from benchmarks.speed.tables import shape_table
from supmim_scale.build.model import encoder_geometry, mask_spec
from supmim_scale.config import RunConfig
from supmim_scale.engine.settings import resolve_precision
from supmim_scale.errors import EXIT_USER_ERROR, UserError
from supmim_scale.hardware.gpus import gpu_of_device
from supmim_scale.launch.provenance import device_name
from supmim_scale.launch.world import World
from supmim_scale.planner.trace import fake_arguments, fill, meta_model

RESULTS = Path(__file__).parents[1] / "results" / "throughput.jsonl"
REPEATS = 5
_aten = torch.ops.aten
_PRODUCTS = {_aten.mm.default: (0, 1), _aten.addmm.default: (1, 2), _aten.bmm.default: (0, 1)}

Shape = tuple[str, tuple[int, ...]]  # ("product", (b, m, k, n)) or ("attention", (b, heads, t, k))


def main() -> int:
    """Time the shapes of every model and print the table."""
    gpus = gpu_count()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    add = parser.add_argument
    add_models_flag(parser)
    add("--layouts", nargs="+", default=["clean_and_masked"])
    add("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    add("--image-size", type=int, default=224 if gpus else 112)
    add("--micro-batch", type=int, default=64 if gpus else 8, help="images")
    add("--out", type=Path, default=RESULTS, help="JSON-lines file to append to")
    arguments = parser.parse_args()
    device = torch.device("cuda" if gpus else "cpu")
    world = World(rank=0, local_rank=0, world_size=1, device=device, launcher="none")
    names = ("precision", "image_size", "micro_batch")
    shared = {name: getattr(arguments, name) for name in names}
    rows = []
    try:
        for model in arguments.models:
            for layout in arguments.layouts:
                job = {
                    "model": model,
                    "layout": layout,
                    "stage": None,
                    "policy": "none",
                    "ranks": 1,
                    **shared,
                }
                rows.append(measure(job, world))
                append(arguments.out, rows[-1])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    print(shape_table(rows))
    return 0


def measure(job: Job, world: World) -> Row:
    """A model's row."""
    config = recipe_of(job)
    precision = resolve_precision(config.engine.precision, world.device)
    roof = matmul_roof(world, precision)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    shapes = shapes_of(config, job["micro_batch"])
    timed: list[Row] = []
    for (kind, sizes), count in shapes.items():
        call, flops = _call(kind, sizes, dtype, world.device)
        spent = fastest(call, world.device, REPEATS)
        timed.append(
            {
                "kind": kind,
                "shape": " x ".join(map(str, sizes)),
                "count": count,
                "seconds": spent,
                "flops": flops,
            }
        )
    roof = max(roof, matmul_roof(world, precision))  # before and after: clocks move
    for row in timed:
        row["share_of_roof"] = row["flops"] / row["seconds"] / roof
    total = sum(row["seconds"] * row["count"] for row in timed)
    flops = sum(row["flops"] * row["count"] for row in timed)
    gpu = gpu_of_device(device_name())
    peak = gpu.bf16_flops_per_s if gpu and precision == "bf16" else None
    share = percent(flops / total / roof)
    print(f"{job['model']} {job['layout']}: {len(timed)} shapes, {share} of the roof", flush=True)
    return {
        "kind": "shapes",
        "model": job["model"],
        "layout": job["layout"],
        "precision": precision,
        "image_size": job["image_size"],
        "micro_batch": job["micro_batch"],
        "roof_flops_per_s": roof,
        "products_s": total,
        "products_flops": flops,
        "products_flops_per_s": flops / total,
        "products_share_of_roof": flops / total / roof,
        "expected_mfu": flops / total / peak if peak else None,
        "mfu_reason": None if peak else f"no sourced {precision} peak for {device_name()}",
        "slowest": max(
            timed, key=lambda row: row["seconds"] * row["count"] * (1 - row["share_of_roof"])
        ),
        "shapes": timed,
        **origin(),
    }


class _Products(TorchDispatchMode):
    """Counts the shapes of products and of attention that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[Shape] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _PRODUCTS:
            a, b = (args[place] for place in _PRODUCTS[func])
            batch = (a.shape[0],) if a.dim() == 3 else (1,)
            self.found["product", (*batch, a.shape[-2], a.shape[-1], b.shape[-1])] += 1
        elif "scaled_dot_product" in func.__name__ and "backward" not in func.__name__:
            self.found["attention", tuple(args[0].shape)] += 1
        return func(*args, **(kwargs or {}))


def shapes_of(config: RunConfig, micro_batch: int) -> dict[Shape, int]:
    """Products and attention of one joint step and how often each runs, on fake tensors.

    The patch convolution is left out: less than a hundredth of the products.
    """
    features = CODES if config.mim.weight else 0
    spec = mask_spec(config, encoder_geometry(config).grid)
    model = meta_model(config, features)
    with FakeTensorMode():
        fill(model)
        arguments = fake_arguments(config, spec, micro_batch, features)
        with _Products() as products:
            model(*arguments).loss.backward()
    return dict(products.found)


def _call(
    kind: str, sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Callable[[], Any], int]:
    """A call on random operands, and its FLOPs; attention forward and backward together."""
    if kind == "product":
        b, m, k, n = sizes
        left, right = _random((b, m, k), dtype, device), _random((b, k, n), dtype, device)
        if b == 1:
            left, right = left[0], right[0]
        return lambda: left @ right, 2 * b * m * k * n
    b, heads, tokens, width = sizes
    q, k_, v = (_random(sizes, dtype, device).requires_grad_() for _ in range(3))

    def attend() -> Tensor:
        out = torch.nn.functional.scaled_dot_product_attention(q, k_, v)
        torch.autograd.grad(out, (q, k_, v), out.detach())
        return out

    # Forward has two products, backward four: what the model needs, not what a kernel recomputes.
    return attend, 6 * 2 * b * heads * tokens**2 * width


def _random(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(sizes, device=device).to(dtype)
