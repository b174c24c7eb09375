"""A set as somebody has it, packed into shards without a recipe."""

from pathlib import Path

from supmim_scale.data.classes import load_classes
from supmim_scale.data.dataset import open_dataset
from supmim_scale.data.pack import PackSpec, pack
from supmim_scale.data.readers import SampleLayout
from supmim_scale.errors import UserError

_ENDINGS = {
    "webdataset": (".tar",),
    "list": (".csv", ".parquet"),
    "tfrecord": (".tfrecord", ".tfrecords", ".tfrec"),
}


def pack_source(
    source: Path,
    out: Path,
    *,
    reader: str | None = None,
    classes: str | None = None,
    image_field: str | None = None,
    label_field: str | None = None,
    labelled: bool = True,
    skip_bad: bool = False,
    shard_size: int = 5000,
    seed: int = 0,
    workers: int = 1,
) -> str:
    """Pack `source` into shuffled shards in `out`; returns a line that says what is there now.

    `reader`: by default the one that the source's own files ask for. `classes`: names by id, as
    `timm/LIST` or a text file. A second call finishes an interrupted one. Raises `UserError`.
    """
    if not source.exists():
        raise UserError("source", f"no {source}", "a folder or a list", "check the path")
    reader = reader or reader_of(source)
    names = load_classes(classes) if classes else None
    index_dir = out / ".source_index"  # the source may be read-only
    try:
        index_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError("out", str(error), "a writable folder", "name another out") from None
    dataset = open_dataset(
        source.parent,
        source.name,
        SampleLayout(reader, image_field, label_field, labelled, names),
        where="source",
        index_dir=index_dir,
        workers=workers,
    )
    if reader == "folder" and names is None:
        names = tuple(sorted(path.name for path in source.iterdir() if path.is_dir()))
    spec = PackSpec(shard_size, seed, skip_bad)
    count = pack(dataset, out, spec, list(names or ()), workers)
    left_out = len(dataset) + len(dataset.defects) - count
    listed = f", {left_out} left out (quarantine.jsonl)" if left_out else ""
    return f"{out}: {count} images in {len(list(out.glob('*.tar')))} shards{listed}"


def reader_of(source: Path) -> str:
    """The reader of a source: by a file's ending, or by what a folder holds."""
    inside = [source] if source.is_file() else list(source.iterdir())
    found = {kind for kind, ends in _ENDINGS.items() if any(p.name.endswith(ends) for p in inside)}
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
