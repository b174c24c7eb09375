"""`supmim-scale data COMMAND`: make, pack, index and check data sets."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from supmim_scale.cli.arguments import add_workers, made_folder, require_positive
from supmim_scale.errors import EXIT_DONE, EXIT_NOT_CLEAN, UserError

if TYPE_CHECKING:
    from supmim_scale.config import RunConfig

_SPLITS = ("train", "val")


def add_data_commands(parser: argparse.ArgumentParser) -> None:
    """`synth`, `pack`, `prepare`, `index`, `verify`, `stats`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    synth = commands.add_parser("synth", help="generate a data set of synthetic JPEGs")
    synth.add_argument("out", type=Path, help="folder for train/ and val/ shards")
    synth.add_argument("--size", default="80x72", help="WIDTHxHEIGHT in pixels; ImageNet: 500x375")
    synth.add_argument("--train", type=int, default=4096, help="number of training images")
    synth.add_argument("--val", type=int, default=1024, help="number of held-out images")
    synth.add_argument("--shard-size", type=int, default=512, help="images per shard")
    synth.add_argument("--seed", type=int, default=0)
    add_workers(synth)
    synth.set_defaults(run=_synth)

    pack = commands.add_parser("pack", help="pack any readable data set into shuffled shards")
    pack.add_argument("source", type=Path, help="folder of class folders or shards, or a list file")
    pack.add_argument("out", type=Path, help="folder for the shards; call again to resume")
    pack.add_argument("--reader", help="webdataset, tfrecord, folder or list; default: detected")
    pack.add_argument("--classes", help="class names in id order: timm/LIST or a text file")
    pack.add_argument("--image-field", help="TFRecord feature or list column with the images")
    pack.add_argument("--label-field", help="TFRecord feature, list column or extension of labels")
    pack.add_argument("--no-labels", action="store_true", help="the data set has no labels")
    pack.add_argument("--skip-bad", action="store_true", help="leave out bad samples and list them")
    pack.add_argument("--shard-size", type=int, default=5000, help="images per shard")
    pack.add_argument("--seed", type=int, default=0, help="seed of the global shuffle")
    add_workers(pack)
    pack.set_defaults(run=_pack)

    index = commands.add_parser("index", help="index a recipe's data sets, as training would")
    _add_recipe(index)
    index.set_defaults(run=_index)

    verify = commands.add_parser(
        "verify",
        help="decode every sample; exit code 1 if any is bad",
        description=(
            "Decodes every sample, writes quarantine.jsonl, report.json and SHA256SUMS, and "
            "compares shards with existing checksums. Exit code 0: clean, 1: not clean."
        ),
    )
    _add_recipe(verify)
    verify.add_argument("--out", type=Path, help="folder of reports; default: ROOT/verify_SPLIT")
    add_workers(verify)
    verify.set_defaults(run=_verify)

    prepare = commands.add_parser(
        "prepare",
        help="pack, index and verify the class folders of both splits; call again to resume",
    )
    _add_recipe(prepare)
    prepare.add_argument("--images", type=Path, required=True, help="folder with train/ and val/")
    prepare.add_argument("--shard-size", type=int, default=5000, help="images a shard")
    prepare.add_argument("--out", type=Path, help="folder of reports; default: ROOT/verify_SPLIT")
    add_workers(prepare)
    prepare.set_defaults(run=_prepare)

    stats = commands.add_parser("stats", help="counts, labels, image sizes, class mixing; a plot")
    _add_recipe(stats)
    stats.add_argument("--out", type=Path, help="folder for the report; default: ROOT/stats_SPLIT")
    stats.set_defaults(run=_stats)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="the recipe that names the data set and its reader")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="overrides, such as input.root=FOLDER"
    )
    parser.add_argument("--split", choices=_SPLITS, help="one split; default: both")


def _synth(arguments: argparse.Namespace) -> int:
    from supmim_scale.data.synth import SynthSpec, write_synthetic

    width, cross, height = arguments.size.partition("x")
    if not (cross and width.isdigit() and height.isdigit()):
        raise UserError("--size", arguments.size, "WIDTHxHEIGHT", "write, say, --size 500x375")
    require_positive("--workers", arguments.workers)
    spec = SynthSpec(
        int(width),
        int(height),
        arguments.train,
        arguments.val,
        arguments.shard_size,
        arguments.seed,
    )
    counts = write_synthetic(arguments.out, spec, arguments.workers)
    print(f"{arguments.out}: {counts['train']} training and {counts['val']} held-out images")
    return EXIT_DONE


def _pack(arguments: argparse.Namespace) -> int:
    from supmim_scale.data.source import pack_source

    line = pack_source(
        arguments.source,
        arguments.out,
        reader=arguments.reader,
        classes=arguments.classes,
        image_field=arguments.image_field,
        label_field=arguments.label_field,
        labelled=not arguments.no_labels,
        skip_bad=arguments.skip_bad,
        shard_size=arguments.shard_size,
        seed=arguments.seed,
        workers=require_positive("--workers", arguments.workers),
    )
    print(line)
    return EXIT_DONE


def _prepare(arguments: argparse.Namespace) -> int:
    from supmim_scale.build.datasets import prepare

    require_positive("--workers", arguments.workers)
    lines = prepare(
        _config(arguments),
        arguments.images,
        _chosen(arguments),
        shard_size=arguments.shard_size,
        workers=arguments.workers,
    )
    print("\n".join(lines.values()))
    _index(arguments)
    return _verify(arguments)


def _index(arguments: argparse.Namespace) -> int:
    from supmim_scale.build.data import index_split

    config = _config(arguments)
    for split in _chosen(arguments):
        dataset = index_split(config, split)
        print(
            f"{split}: {len(dataset)} samples in {len(dataset.tables)} files, labels up to "
            f"{dataset.largest_label}, {len(dataset.defects)} left out"
        )
        for defect in dataset.defects[:10]:
            print(f"  {defect}")
    return EXIT_DONE


def _verify(arguments: argparse.Namespace) -> int:
    from supmim_scale.build.datasets import verify_split

    config, is_clean = _config(arguments), True
    require_positive("--workers", arguments.workers)
    for split in _chosen(arguments):
        out = _report_folder(arguments, config, "verify", split)
        verdict = verify_split(config, split, out, arguments.workers)
        print(f"{split}: {verdict.table()}\n{out}: quarantine.jsonl, report.json, checksums")
        is_clean &= verdict.is_clean
    return EXIT_DONE if is_clean else EXIT_NOT_CLEAN


def _stats(arguments: argparse.Namespace) -> int:
    from supmim_scale.build.datasets import inspect_split

    config = _config(arguments)
    for split in _chosen(arguments):
        out = _report_folder(arguments, config, "stats", split)
        stats = inspect_split(config, split, out)
        print(f"{split}: {json.dumps(stats.facts, indent=2)}\n{out}: stats.json, stats.png")
        for warning in stats.warnings:
            print(f"warning: {split}: {warning}")
    return EXIT_DONE


def _config(arguments: argparse.Namespace) -> "RunConfig":
    from supmim_scale.config import load_config

    return load_config(arguments.recipe, arguments.overrides)


def _chosen(arguments: argparse.Namespace) -> tuple[str, ...]:
    return (arguments.split,) if arguments.split else _SPLITS


def _report_folder(
    arguments: argparse.Namespace, config: "RunConfig", name: str, split: str
) -> Path:
    """Make and return the folder of a split's report."""
    root = Path(config.input.root)
    out = arguments.out / split if arguments.out else root / f"{name}_{split}"
    return made_folder(out, "--out")
