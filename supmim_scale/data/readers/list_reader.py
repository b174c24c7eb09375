"""A CSV or Parquet list of images: a column of paths and one of labels.

Paths are relative to the list's folder. Labels are a number, several numbers separated by
blanks, or (Parquet) a list of numbers; names where the recipe gives the classes.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from supmim_scale.data.readers import base
from supmim_scale.data.readers.base import Layout
from supmim_scale.data.readers.folder_reader import shuffled
from supmim_scale.data.table import WHOLE_FILE, Defect, Rows, source_name
from supmim_scale.errors import UserError

PATH_COLUMN = "path"
LABEL_COLUMN = "label"


class ListReader:
    """`.csv` and `.parquet` files of a folder, or those that a path or glob names."""

    def find(self, root: Path, pattern: str, where: str) -> list[Path]:
        """See `Reader`."""
        return base.find_files(root, pattern, where, (".csv", ".parquet"))

    def stamp(self, source: Path) -> dict[str, str]:
        """See `Reader`."""
        return base.file_stamp(source)

    def scan(self, source: Path, layout: Layout) -> tuple[pa.Table, list[Defect]]:
        """See `Reader`. Raises `UserError` for a file that is no such list."""
        path, label = layout.image or PATH_COLUMN, layout.label or LABEL_COLUMN
        listed = _read(source, [path, label] if layout.labelled else [path])
        labels: list[Any] = listed[label].to_pylist() if layout.labelled else [()] * len(listed)
        rows, ids, seen = Rows(source_name(source)), base.class_ids(layout), set[str]()
        for line, (name, given) in enumerate(zip(listed[path].to_pylist(), labels, strict=True)):
            key = str(name or "")
            where = f"row {line + 1}: {key}"
            extension = key.rpartition(".")[2].lower()
            try:
                words = _words(given)
                if not key or base.is_unsafe(key):
                    rows.reject(where, base.UNSAFE if key else "no path")
                elif key in seen:
                    rows.reject(where, base.DUPLICATE, "the first is kept")
                elif extension not in base.IMAGE_EXTENSIONS:
                    rows.reject(where, "no image", f"one of {', '.join(base.IMAGE_EXTENSIONS)}")
                elif layout.labelled and not words:
                    rows.reject(where, base.NO_LABEL)
                else:
                    seen.add(key)
                    rows.add(key, 0, WHOLE_FILE, base.parse_labels(words, ids))
            except ValueError as error:
                rows.reject(where, base.BAD_LABEL, str(error))
        if not rows.keys and not rows.defects:
            rows.reject("", base.NO_SAMPLE, "no row")
        return shuffled(rows.as_arrow()), rows.defects


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
        raise UserError(str(source), what, "a CSV or Parquet list", "mend the file") from None


def require_columns(source: Path, found: list[str], wanted: list[str]) -> None:
    """Raise `UserError` for the first column that a list lacks."""
    for name in wanted:
        if name not in found:
            raise UserError(
                str(source), f"columns {', '.join(found)}", f"a column {name}",
                "add it, or name yours with data.image_field and data.label_field",
            )  # fmt: skip


def _words(given: Any) -> list[str]:
    if given is None:
        return []
    if isinstance(given, (list, tuple)):
        return [str(value) for value in given]
    return str(given).split()


READER = ListReader()
