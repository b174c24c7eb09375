"""Class lists: names in the order of their ids, from timm's package or a file of the user's."""

from importlib import metadata
from pathlib import Path

from supmim_scale.errors import UserError, did_you_mean

_PREFIX, _SUFFIX = "timm/", "_synsets.txt"


def load_classes(name: str) -> tuple[str, ...]:
    """Class names of `timm/LIST`, or of a text file with one a line.

    timm ships ImageNet's: `timm/imagenet22k` has the 21,841 of the whole set,
    `timm/imagenet21k_miil_w21` the 10,450 of the processed winter set (Ridnik et al. 2021,
    arXiv 2104.10972). Its files are read where they lie; importing timm takes seconds.
    """
    if name.startswith(_PREFIX):
        lists = timm_lists()
        wanted = name.removeprefix(_PREFIX)
        if wanted not in lists:
            fix = did_you_mean(wanted, lists)
            raise UserError("data.classes", f"'{name}'", "a list that timm has", fix)
        path = lists[wanted]
    else:
        path = Path(name)
    try:
        names = tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            "data.classes",
            str(error),
            "timm/LIST, or a text file of one class a line",
            "check the path",
        ) from None
    if not names or len(set(names)) < len(names):
        found = f"{len(names) - len(set(names))} names twice" if names else "no name"
        raise UserError(f"data.classes {name}", found, "each class once", "fix the file")
    return names


def timm_lists() -> dict[str, Path]:
    """timm's class lists by name."""
    files = metadata.files("timm") or []
    return {
        file.name.removesuffix(_SUFFIX): Path(str(file.locate()))
        for file in files
        if file.name.endswith(_SUFFIX)
    }
