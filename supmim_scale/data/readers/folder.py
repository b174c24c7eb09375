"""A folder a class: the split's subfolders are classes, the files in them samples.

Class ids are the subfolders' places in sorted order, or in the recipe's class list. The listing
is permuted once, so that neighbouring rows come from many classes.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import pyarrow as pa

from supmim_scale.data.index_table import WHOLE_FILE, Defect, Rows
from supmim_scale.data.readers import base
from supmim_scale.data.readers.base import SampleLayout
from supmim_scale.errors import UserError, did_you_mean

_LISTING_SEED = 0


class FolderReader:
    """One source a split: the folder of class folders."""

    def find(self, root: Path, pattern: str, where: str) -> list[Path]:
        """See `Reader`."""
        target = base.locate(root, pattern, where)
        if not target.is_dir() or not _class_folders(target):
            found = f"{target} ({'no subfolder' if target.is_dir() else 'no such folder'})"
            raise UserError(where, found, "a folder of class folders", "check the path")
        return [target]

    def stamp(self, source: Path) -> dict[str, str]:
        """See `Reader`: names and times of the class folders."""
        folders = [f"{path.name} {path.stat().st_mtime_ns}" for path in _class_folders(source)]
        return {"folders": hashlib.sha256("\n".join(folders).encode()).hexdigest()}

    def scan(self, source: Path, name: str, layout: SampleLayout) -> tuple[pa.Table, list[Defect]]:
        """See `Reader`. Raises `UserError` for a folder that is no class."""
        folders = _class_folders(source)
        ids = base.class_ids(layout) or {path.name: i for i, path in enumerate(folders)}
        tables = [Rows(name).as_arrow()]
        for folder in folders:
            if layout.labelled and folder.name not in ids:
                raise UserError(
                    str(folder),
                    "a folder that is no class",
                    "a name of data.classes",
                    did_you_mean(folder.name, ids),
                )
            rows = Rows(name)
            labels = [ids[folder.name]] if layout.labelled else []
            for entry in sorted(os.scandir(folder), key=lambda e: e.name):
                key = f"{source.name}/{folder.name}/{entry.name}"
                if entry.is_dir():
                    raise UserError(
                        entry.path, "a folder inside a class", "images", "move its images up"
                    )
                if entry.name.rpartition(".")[2].lower() in base.IMAGE_EXTENSIONS:
                    rows.add(key, 0, WHOLE_FILE, labels)
            tables.append(rows.as_arrow())
        samples = shuffled(pa.concat_tables(tables))
        empty = Defect(name, "", base.NO_SAMPLE, "no image in any class")
        return samples, [] if samples.num_rows else [empty]


def shuffled(samples: pa.Table) -> pa.Table:
    """The rows of a listing in an order that is no order."""
    order = np.random.default_rng(_LISTING_SEED).permutation(samples.num_rows)
    return samples.take(pa.array(order))


def class_names(source: Path) -> list[str]:
    """Names of the class folders, sorted; none where there is no such folder."""
    return [path.name for path in _class_folders(source)] if source.is_dir() else []


def _class_folders(source: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in os.scandir(source) if entry.is_dir())


READER = FolderReader()
