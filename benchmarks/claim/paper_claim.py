#!/usr/bin/env python3
"""The paper's claim on CIFAR-10: does the MIM term make the supervised representation better?

    python benchmarks/paper_claim.py --cifar10 DIR                 the full one; a GPU
    python benchmarks/paper_claim.py --cifar10 DIR --ablations     then these, a row each
    python benchmarks/paper_claim.py --cifar10 DIR --sizes 384x12/4 192x9/2     other ViTs
    python benchmarks/paper_claim.py --cifar10 DIR --middle        a fifth of the images, 10 epochs
    python benchmarks/paper_claim.py --cifar10 DIR --short         a subset, 40 minutes on a CPU

DIR holds `train.npz` and `test.npz`: JPEG bytes one after the other (`jpeg`), where each begins and
the last ends (`offsets`), class ids (`labels`).

Supervised alone and supervised + MIM share recipe, seeds, order, crops, augmentation and the number
of images seen; each has its own peak learning rate, the better of the same few on a tenth of the
training set held out for it, with a seed of its own. Then the last weights give top-1, k-NN
(k = 20, T = 0.07) and the linear probe on the test set, and differences between the objectives are
paired by seed, with 95 % intervals of Student's t. Rows that are there already are not run again.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.claim.report import report, version_of
from supmim_scale.config import RunConfig, digest, load_config
from supmim_scale.data.shards import write_shard
from supmim_scale.errors import EXIT_USER_ERROR, UserError
from supmim_scale.evaluation.knn import KnnSettings
from supmim_scale.evaluation.request import Request
from supmim_scale.evaluation.run import run_evaluation
from supmim_scale.evaluation.subject import open_run
from supmim_scale.launch.join import join_world, leave_world
from supmim_scale.launch.provenance import provenance
from supmim_scale.launch.signals import Stopper
from supmim_scale.launch.world import World
from supmim_scale.training.build import build_run
from supmim_scale.training.loop import train
from supmim_scale.training.resume import Start

HERE = Path(__file__).parent
RECIPE = str(HERE / "paper_claim.yaml")
RESULTS = HERE.parent / "results" / "paper_claim.jsonl"
LEARNING_RATES = (5e-4, 1e-3, 2e-3)
TUNING_SEED = 1000
SHARDS = 4
# Made for a CPU: everything real but the size.
SHORT = [
    "model.drop_path=0",
    "mim.codebook_size=128",
    "mim.codebook_images=512",
    "augment.kind=none",
    "augment.mixup_alpha=0",
    "augment.cutmix_alpha=0",
    "optim.global_batch=64",
    "optim.epochs=4",
    "optim.warmup_steps=20",
    "log.every=16",
]
# The full one's model and augmentation for minutes on a GPU.
MIDDLE = ["optim.epochs=10", "optim.warmup_steps=100"]
WORDS: dict[str, list[str]] = {"short": SHORT, "middle": MIDDLE, "full": []}
IMAGES = {"short": (4096, 2000), "middle": (10_000, None), "full": (None, None)}  # train, test
# WIDTHxDEPTH/PATCH: heads. Of 32 by 32 pixels, 4-pixel patches make 64 and 2-pixel ones 256.
SIZES = {"64x4/4": 2, "96x6/4": 3, "192x9/4": 3, "192x9/2": 3, "384x12/4": 6}
USUAL_SIZES = {"short": ["64x4/4"], "middle": ["192x9/4"], "full": ["192x9/4"]}
OBJECTIVES = {"supervised": ["mim.weight=0"], "supervised_mim": []}
# Beside the joint recipe, in order of interest.
ABLATIONS = {
    "mask.ratio=0.75": ["mask.ratio=0.75"],
    "mask.ratio=0.25": ["mask.ratio=0.25"],
    "mim.target=pixel": ["mim.target=pixel"],
    "mim.weight=0.3": ["mim.weight=0.3"],
    "mim.weight=3": ["mim.weight=3"],
    "model.decoder_depth=1": ["model.decoder_depth=1"],
    "model.decoder_depth=4": ["model.decoder_depth=4"],
    "mim.layout=clean_and_masked_tokens": ["mim.layout=clean_and_masked_tokens"],
    "mim.layout=masked_only": ["mim.layout=masked_only"],
}


def main() -> int:
    """Pack, tune, train, measure, report."""
    arguments = parse_arguments()
    world = join_world()
    try:
        folders = world.main_first(lambda: prepare(arguments))
        run_all(arguments, folders, world)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    if world.is_main:
        table = report(arguments.out)
        arguments.out.with_suffix(".md").write_text(table + "\n")
        print(table)
    leave_world(world)
    return 0


def parse_arguments() -> argparse.Namespace:
    """What to run and where."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    given = os.environ.get("CIFAR10")
    parser.add_argument(
        "--cifar10",
        type=Path,
        default=given,
        required=given is None,
        help="folder of train.npz and test.npz; default: $CIFAR10",
    )
    parser.add_argument("--work", type=Path, default=Path("runs/paper_claim"), help="for the runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON lines to add to")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--sizes",
        nargs="+",
        choices=list(SIZES),
        help="WIDTHxDEPTH/PATCH of the ViTs; default: one",
    )
    versions = parser.add_mutually_exclusive_group()
    for name, told in (("short", "a small model on a subset"), ("middle", "10 epochs of a fifth")):
        versions.add_argument(
            f"--{name}", dest="version", action="store_const", const=name, default="full", help=told
        )
    parser.add_argument(
        "--ablations",
        nargs="?",
        type=int,
        const=len(ABLATIONS),
        default=0,
        metavar="N",
        help="run the first N, or all, on the first seed",
    )
    parser.add_argument("--lrs", type=float, nargs="+", default=LEARNING_RATES, help="to tune over")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for both objectives")
    return parser.parse_args()


def prepare(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """Shards of the training and test images, and of a split of the training images to tune on;
    (folder, folder to tune on)."""
    name = arguments.version
    num_train, num_test = IMAGES[name]
    whole, tuning = arguments.work / f"data_{name}", arguments.work / f"data_{name}_tuning"
    if not (whole / "val").exists() or not (tuning / "val").exists():
        train_set, test_set = (
            read(arguments.cifar10 / f"{part}.npz") for part in ("train", "test")
        )
        order = np.random.default_rng(0).permutation(len(train_set[1]))[:num_train]
        write(whole / "train", train_set, order)
        write(whole / "val", test_set, np.arange(len(test_set[1]))[:num_test])
        write(tuning / "train", train_set, order[len(order) // 10 :])
        write(tuning / "val", train_set, order[: len(order) // 10])
    return whole, tuning


def read(path: Path) -> tuple[list[bytes], Any]:
    """(encoded images, labels). Raises `UserError` for another file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            data, offsets = arrays["jpeg"].tobytes(), arrays["offsets"]
            labels = arrays["labels"]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(str(path), str(error), "jpeg, offsets and labels", "see --help") from None
    return [data[start:end] for start, end in pairwise(offsets)], labels


def write(folder: Path, images: tuple[list[bytes], Any], chosen: Any) -> None:
    """Chosen images as shards; the folder appears when it is whole."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    encoded, labels = images
    for number, places in enumerate(np.array_split(chosen, SHARDS)):
        samples = ((f"{i:06d}", encoded[i], "jpg", str(labels[i])) for i in places)
        write_shard(part / f"{number:03d}.tar", samples)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def run_all(arguments: argparse.Namespace, folders: tuple[Path, Path], world: World) -> None:
    """Every size: tune each objective, then run it with every seed; then the ablations."""
    for size in arguments.sizes or USUAL_SIZES[arguments.version]:
        run_size(arguments, folders, world, size)


def run_size(
    arguments: argparse.Namespace, folders: tuple[Path, Path], world: World, size: str
) -> None:
    """All runs of a ViT of one size."""
    shared = [*size_words(size), *WORDS[arguments.version], *arguments.overrides]
    lrs = {}
    for objective, own in OBJECTIVES.items():
        tuned = [
            one(
                arguments,
                folders[1],
                world,
                [*shared, *own, f"optim.lr={lr}"],
                TUNING_SEED,
                kind="tune",
                objective=objective,
            )
            for lr in arguments.lrs
        ]
        lrs[objective] = max(tuned, key=lambda row: row["top1"])["lr"]
    for seed in arguments.seeds:
        for objective, own in OBJECTIVES.items():
            words = [*shared, *own, f"optim.lr={lrs[objective]}"]
            one(arguments, folders[0], world, words, seed, kind="run", objective=objective)
    for name in list(ABLATIONS)[: arguments.ablations]:
        words = [*shared, f"optim.lr={lrs['supervised_mim']}", *ABLATIONS[name]]
        one(
            arguments, folders[0], world, words, arguments.seeds[0], kind="ablation", objective=name
        )


def size_words(size: str) -> list[str]:
    """A size's overrides."""
    width, depth, patch = size.replace("/", "x").split("x")
    return [
        f"model.width={width}",
        f"model.depth={depth}",
        f"model.heads={SIZES[size]}",
        f"model.patch_size={patch}",
    ]


def one(
    arguments: argparse.Namespace,
    data: Path,
    world: World,
    words: Sequence[str],
    seed: int,
    *,
    kind: str,
    objective: str,
) -> dict[str, Any]:
    """Collective: the row of one run, which is trained and measured unless it is there."""
    config = load_config(RECIPE, [*words, f"seed={seed}", f"input.root={data}"])
    key = {"kind": kind, "objective": objective, "seed": seed, "digest": digest(config)}
    for row in world.gather(rows_of(arguments.out))[0]:
        same = all(row.get(name) == value for name, value in key.items())
        if same and version_of(row) == arguments.version:
            return row
    run_dir = arguments.work / f"{kind}_{objective.replace('=', '_')}_{seed}_{digest(config)}"
    figures = train_and_measure(config, run_dir, world)
    model = config.model
    row = {
        **key,
        "version": arguments.version,
        "lr": config.optim.lr,
        **figures,
        "size": f"{model.width}x{model.depth}/{model.patch_size}",
        "overrides": list(words),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    row |= provenance()
    if world.is_main:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with open(arguments.out, "a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"{row['size']} {kind} {objective} seed {seed} lr {row['lr']:g}: "
            f"top-1 {row['top1']:.2%}",
            flush=True,
        )
    world.barrier()
    return row


def train_and_measure(config: RunConfig, run_dir: Path, world: World) -> dict[str, Any]:
    """Collective: figures of a run from the beginning to the measures of its last weights."""
    if world.is_main:
        shutil.rmtree(run_dir, ignore_errors=True)  # one that was cut off
    world.barrier()
    run = build_run(config, world, run_dir, Start())
    last = train(run, Stopper())
    seen, num_train = run.num_steps * config.optim.global_batch, len(run.train_set)
    curve = [
        [row["steps_done"], row["class_loss"], row["mim_loss"]]
        for row in rows_of(run_dir / "log.jsonl")
        if row["kind"] == "train"
    ]
    wanted = Request(knn=KnnSettings(), probe="lbfgs")
    figures = run_evaluation(
        open_run(run_dir, None, [f"input.root={config.input.root}"]), wanted, world
    )
    names = (
        "top1",
        "knn_top1",
        "probe_top1",
        "retrieval_map",
        "recall_at_1",
        "knn_k",
        "knn_temperature",
        "probe_l2",
        "images",
        "precision",
    )
    return {name: figures[name] for name in names} | {
        "images_seen": seen,
        "train_images": num_train,
        "steps": run.num_steps,
        "images_per_s": last["mean_images_per_s"],
        "curve": curve,
    }


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
