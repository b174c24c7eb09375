"""The command line of data sets: `supmim-scale data COMMAND`."""

import argparse
import json
import os
from pathlib import Path

from supmim_scale.errors import EXIT_DONE, EXIT_NOT_CLEAN, UserError

_SPLITS = ("train", "val")


def add_data_commands(parser: argparse.ArgumentParser) -> None:
    """`synth`, `pack`, `prepare`, `index`, `verify`, `stats`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    synth = commands.add_parser("synth", help="make a data set of procedural JPEGs")
    synth.add_argument("out", type=Path, help="folder for train/ and val/ shards")
    synth.add_argument("--size", default="80x72", help="pixels; 500x375 is ImageNet-like")
    synth.add_argument("--train", type=int, default=4096, help="training images")
    synth.add_argument("--val", type=int, default=1024, help="held-out images")
    synth.add_argument("--shard-size", type=int, default=512, help="images a shard")
    synth.add_argument("--seed", type=int, default=0)
    _add_workers(synth)
    synth.set_defaults(run=_synth)

    pack = commands.add_parser("pack", help="pack any readable set into shuffled shards")
    pack.add_argument("source", type=Path, help="folder of class folders or shards, or a list")
    pack.add_argument("out", type=Path, help="folder for the shards; a second call goes on")
    pack.add_argument("--reader", help="webdataset, tfrecord, folder, list; default: what it is")
    pack.add_argument("--classes", help="class names by id: timm/LIST or a text file")
    pack.add_argument("--image-field", help="TFRecord feature or list column of images")
    pack.add_argument("--label-field", help="TFRecord feature, list column, extension of labels")
    pack.add_argument("--no-labels", action="store_true", help="the set has none")
    pack.add_argument("--skip-bad", action="store_true", help="leave bad samples out and list them")
    pack.add_argument("--shard-size", type=int, default=5000, help="images a shard")
    pack.add_argument("--seed", type=int, default=0, help="of the global shuffle")
    _add_workers(pack)
    pack.set_defaults(run=_pack)

    index = commands.add_parser("index", help="index a recipe's sets, where training would")
    _add_recipe(index)
    index.set_defaults(run=_index)

    verify = commands.add_parser(
        "verify",
        help="decode every sample; exit code 1 where any is bad",
        description=(
            "Decodes every sample, writes quarantine.jsonl, report.json and SHA256SUMS, and "
            "compares with checksums that are there. Exit code 0: clean, 1: not."
        ),
    )
    _add_recipe(verify)
    verify.add_argument("--out", type=Path, help="folder of reports; default: ROOT/verify_SPLIT")
    _add_workers(verify)
    verify.set_defaults(run=_verify)

    prepare = commands.add_parser(
        "prepare", help="pack, index and verify class folders of both splits; goes on where it was"
    )
    _add_recipe(prepare)
    prepare.add_argument("--images", type=Path, required=True, help="folder of train/ and val/")
    prepare.add_argument("--shard-size", type=int, default=5000, help="images a shard")
    prepare.add_argument("--out", type=Path, help="folder of reports; default: ROOT/verify_SPLIT")
    _add_workers(prepare)
    prepare.set_defaults(run=_prepare)

    stats = commands.add_parser("stats", help="counts, labels, sizes, mixing of classes; a picture")
    _add_recipe(stats)
    stats.add_argument("--out", type=Path, help="folder of the report; default: ROOT/stats_SPLIT")
    stats.set_defaults(run=_stats)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="the recipe that names the set and its reader")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="input.root=... and so on"
    )
    parser.add_argument("--split", choices=_SPLITS, help="one of the two; default: both")


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=_positive, default=os.cpu_count() or 1, help="processes")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _synth(arguments: argparse.Namespace) -> int:
    from supmim_scale.data.synth import SynthSpec, write_synthetic

    width, cross, height = arguments.size.partition("x")
    if not (cross and width.isdigit() and height.isdigit()):
        raise UserError("--size", arguments.size, "WIDTHxHEIGHT", "write, say, --size 500x375")
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
    from supmim_scale.data.classes import load_classes
    from supmim_scale.data.dataset import open_dataset
    from supmim_scale.data.pack import PackSpec, pack
    from supmim_scale.data.readers import SampleLayout

    source: Path = arguments.source
    if not source.exists():
        raise UserError("source", f"no {source}", "a folder or a list", "check the path")
    reader = arguments.reader or _kind_of(source)
    classes = load_classes(arguments.classes) if arguments.classes else None
    layout = SampleLayout(
        reader, arguments.image_field, arguments.label_field, not arguments.no_labels, classes
    )
    index_dir = _made(arguments.out / ".source_index", "out")  # the source may be read-only
    dataset = open_dataset(
        source.parent,
        source.name,
        layout,
        where="source",
        index_dir=index_dir,
        workers=arguments.workers,
    )
    if reader == "folder" and classes is None:
        classes = tuple(sorted(path.name for path in source.iterdir() if path.is_dir()))
    spec = PackSpec(arguments.shard_size, arguments.seed, arguments.skip_bad)
    count = pack(dataset, arguments.out, spec, list(classes or ()), arguments.workers)
    left_out = len(dataset) + len(dataset.defects) - count
    listed = f", {left_out} left out (quarantine.jsonl)" if left_out else ""
    num_shards = len(list(arguments.out.glob("*.tar")))
    print(f"{arguments.out}: {count} images in {num_shards} shards{listed}")
    return EXIT_DONE


def _prepare(arguments: argparse.Namespace) -> int:
    from supmim_scale.config import load_config
    from supmim_scale.data.readers.folder import class_names

    config = load_config(arguments.recipe, arguments.overrides)
    if config.data.classes is None:  # ids are then the places of the folders' names
        train, val = (set(class_names(arguments.images / split)) for split in _SPLITS)
        if train != val:
            raise UserError(
                str(arguments.images),
                f"class {min(train ^ val)} in one of train and val alone",
                "the same class folders in both",
                "set data.classes to a list of all names",
            )
    for split in _chosen(arguments):
        _pack(
            argparse.Namespace(
                source=arguments.images / split,
                out=Path(config.input.root) / split,
                reader=None,
                classes=config.data.classes,
                image_field=None,
                label_field=None,
                no_labels=config.loss.kind == "none",
                skip_bad=config.input.bad_samples == "skip",
                shard_size=arguments.shard_size,
                seed=0,
                workers=arguments.workers,
            )
        )
    _index(arguments)
    return _verify(arguments)


def _kind_of(source: Path) -> str:
    """The reader of a source: by a file's ending, or by what a folder holds."""
    kinds = {
        "webdataset": (".tar",),
        "list": (".csv", ".parquet"),
        "tfrecord": (".tfrecord", ".tfrecords", ".tfrec"),
    }
    inside = [source] if source.is_file() else list(source.iterdir())
    found = {kind for kind, ends in kinds.items() if any(p.name.endswith(ends) for p in inside)}
    if source.is_dir() and any(p.is_dir() and not p.name.startswith(".") for p in inside):
        found.add("folder")
    if len(found) != 1:
        raise UserError(
            str(source),
            f"{' and '.join(sorted(found)) or 'nothing that is read'} in it",
            "one kind of set",
            "say which with --reader webdataset, tfrecord, folder or list",
        )
    return found.pop()


def _index(arguments: argparse.Namespace) -> int:
    from supmim_scale.build.data import index_split
    from supmim_scale.config import load_config

    config = load_config(arguments.recipe, arguments.overrides)
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
    from supmim_scale.build.data import index_split
    from supmim_scale.config import load_config
    from supmim_scale.data.verify import verify

    config = load_config(arguments.recipe, arguments.overrides)
    is_clean = True
    for split in _chosen(arguments):
        out = _report_folder(arguments, config.input.root, "verify", split)
        dataset = index_split(config, split)
        labelled = config.loss.kind != "none"
        verdict = verify(
            dataset, out, config.model.num_classes if labelled else None, arguments.workers
        )
        print(f"{split}: {verdict.table()}\n{out}: quarantine.jsonl, report.json, checksums")
        is_clean &= verdict.is_clean
    return EXIT_DONE if is_clean else EXIT_NOT_CLEAN


def _stats(arguments: argparse.Namespace) -> int:
    from supmim_scale.build.data import index_split, sample_order
    from supmim_scale.config import load_config
    from supmim_scale.data.inspect import inspect, plot_inspection

    config = load_config(arguments.recipe, arguments.overrides)
    for split in _chosen(arguments):
        out = _report_folder(arguments, config.input.root, "stats", split)
        dataset = index_split(config, split)
        order = sample_order(config, dataset)
        stats = inspect(dataset, order, config.optim.global_batch, config.model.num_classes)
        (out / "stats.json").write_text(json.dumps(stats.facts, indent=2) + "\n")
        plot_inspection(
            stats, out / "stats.png", f"{config.data.name}, {split}: {len(dataset)} images"
        )
        print(f"{split}: {json.dumps(stats.facts, indent=2)}\n{out}: stats.json, stats.png")
        for warning in stats.warnings:
            print(f"warning: {split}: {warning}")
    return EXIT_DONE


def _chosen(arguments: argparse.Namespace) -> tuple[str, ...]:
    return (arguments.split,) if arguments.split else _SPLITS


def _report_folder(arguments: argparse.Namespace, root: str, name: str, split: str) -> Path:
    """Where a split's report goes; made."""
    out = arguments.out / split if arguments.out else Path(root) / f"{name}_{split}"
    return _made(out, "--out")


def _made(folder: Path, where: str) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(where, str(error), "a writable folder", f"name another {where}") from None
    return folder
