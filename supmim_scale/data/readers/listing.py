"""A CSV or Parquet list of images: a column of paths and one of labels.

Paths are relative to the list's folder. Labels are a number, several numbers separated by
blanks, or (Parquet) a list of numbers; names where the recipe gives the classes.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from supmim_scale.data.index_table import WHOLE_FILE, Defect, Rows
from supmim_scale.data.readers import base
from supmim_scale.data.readers.base import SampleLayout
from supmim_scale.data.readers.folder import shuffled
from supmim_scale.errors import UserError

PATH_COLUMN = "path"
LABEL_COLUMN = "label"
_ROWS_AT_A_TIME = 65_536


class ListReader:
    """`.csv` and `.parquet` files of a folder, or those that a path or glob names."""

    def find(self, root: Path, pattern: str, where: str) -> list[Path]:
        """See `Reader`."""
        return base.find_files(root, pattern, where, ("*.csv", "*.parquet"))

    def stamp(self, source: Path) -> dict[str, str]:
        """See `Reader`."""
        return base.file_stamp(source)

    def scan(self, source: Path, name: str, layout: SampleLayout) -> tuple[pa.Table, list[Defect]]:
        """See `Reader`. Raises `UserError` for a file that is no such list."""
        path, label = layout.image or PATH_COLUMN, layout.label or LABEL_COLUMN
        listed = _read(source, [path, label] if layout.labelled else [path])
        tables, defects, first = [Rows(name).as_arrow()], list[Defect](), 1
        for batch in listed.to_batches(max_chunksize=_ROWS_AT_A_TIME):
            labels: list[Any] = batch[label].to_pylist() if layout.labelled else [()] * len(batch)
            rows = Rows(name)
            for line, given in enumerate(zip(batch[path].to_pylist(), labels, strict=True), first):
                _take(rows, line, *given, layout)
            first += len(batch)
            tables.append(rows.as_arrow())
            defects += rows.defects
        samples, doubles = _without_doubles(pa.concat_tables(tables).combine_chunks())
        defects += [Defect(name, key, base.DUPLICATE, "the first is kept") for key in doubles]
        if not samples.num_rows and not defects:
            defects = [Defect(name, "", base.NO_SAMPLE, "no row")]
        return shuffled(samples), defects


def _take(rows: Rows, line: int, path: Any, given: Any, layout: SampleLayout) -> None:
    """A row of the list, as a sample or as what is wrong with it."""
    key = str(path or "")
    where, ids = f"row {line}: {key}", base.class_ids(layout)
    try:
        labels = _labels(given, ids) if layout.labelled else []
        if not key or base.is_unsafe(key):
            rows.reject(where, base.UNSAFE if key else "no path")
        elif key.rpartition(".")[2].lower() not in base.IMAGE_EXTENSIONS:
            rows.reject(where, "no image", f"one of {', '.join(base.IMAGE_EXTENSIONS)}")
        elif layout.labelled and not labels:
            rows.reject(where, base.NO_LABEL)
        else:
            rows.add(key, 0, WHOLE_FILE, labels)
    except ValueError as error:
        rows.reject(where, base.BAD_LABEL, str(error))


def _labels(given: Any, ids: dict[str, int] | None) -> list[int]:
    words = given if isinstance(given, (list, tuple)) else [given if given is not None else ""]
    return [label for word in words for label in base.parse_labels(str(word), ids)]


def _without_doubles(samples: pa.Table) -> tuple[pa.Table, list[str]]:
    """The first row of every key, and the keys that come again."""
    codes = pa.compute.dictionary_encode(samples["key"]).combine_chunks().indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    again = np.setdiff1d(np.arange(len(codes)), first)
    doubles: list[str] = samples["key"].take(pa.array(again)).to_pylist()
    return samples.take(pa.array(np.sort(first))) if len(again) else samples, doubles


def _read(source: Path, columns: list[str]) -> pa.Table:
    try:
        if source.suffix == ".parquet":
            names = pa.parquet.read_schema(source).names
            require_columns(source, names, columns)
            return pa.parquet.read_table(source, columns=columns)
        text = dict.fromkeys(columns, pa.string())
        options = pa.csv.ConvertOptions(column_types=text, strings_can_be_null=False)
        table = pa.csv.read_csv(source, convert_options=options)
        require_columns(source, table.column_names, columns)
        return table.select(columns)
    except (pa.ArrowException, OSError) as error:
        what = " ".join(str(error).split())
        raise UserError(str(source), what, "a CSV or Parquet list", "fix the file") from None


def require_columns(source: Path, found: list[str], wanted: list[str]) -> None:
    """Raise `UserError` for the first column that a list lacks."""
    for name in wanted:
        if name not in found:
            raise UserError(
                str(source),
                f"columns {', '.join(found)}",
                f"a column {name}",
                "add it, or name yours with data.image_field and data.label_field",
            )


READER = ListReader()
