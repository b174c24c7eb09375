"""Models that timm names, and folders and files as timm writes them, for evaluation."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from supmim_scale.errors import UserError, did_you_mean
from supmim_scale.models.torchvision_ops import declare_missing_ops

declare_missing_ops()

import timm  # noqa: E402
from timm.data import resolve_model_data_config  # noqa: E402
from timm.models import safe_model_name, split_model_name_tag  # noqa: E402

_HUB, _FOLDER = "hf-hub:", "local-dir:"


@dataclass(frozen=True)
class Views:
    """How a model wants its images: pixels, mean and std a channel, the centre crop's share of
    the shorter side, interpolation."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop: float
    interpolation: str


def is_named(name: str) -> bool:
    """Whether timm, or the Hugging Face hub through timm, knows a model by this name."""
    return name.startswith(_HUB) or timm.is_model(split_model_name_tag(name)[0])


def advice(name: str) -> str:
    """Models of timm with a name like this one."""
    alike = timm.list_models(f"{name.split('_')[0]}*")[:200]
    return did_you_mean(name, alike) if alike else "timm.list_models() lists the names"


def open_named(name: str, image_size: int | None = None) -> nn.Module:
    """timm's model with its published weights, from timm's cache or its hub.

    Raises `UserError` where they cannot be had.
    """
    with _quiet_hub():
        return _created(name, name, image_size, pretrained=True)


def open_folder(folder: Path, image_size: int | None = None) -> nn.Module:
    """The model of a folder with `config.json` and `model.safetensors` (timm's `local-dir:`).

    Raises `UserError` where timm does not open it.
    """
    if not (folder / "model.safetensors").is_file():
        raise UserError(
            str(folder),
            "no model.safetensors",
            "a folder as timm or export writes it",
            "nothing that must be unpickled is read; write safetensors",
        )
    return _created(f"{_FOLDER}{folder}", str(folder), image_size, pretrained=True)


def open_tensors(
    name: str, given: dict[str, Tensor], where: str, image_size: int | None = None
) -> nn.Module:
    """timm's architecture `name` with these tensors, as timm's `state_dict` gives them; the head
    has as many classes as they do. Raises `UserError` naming the first that does not fit."""
    head = next((given[key] for key in ("head.weight", "head.fc.weight") if key in given), None)
    model = _created(
        name, name, None, pretrained=False, num_classes=0 if head is None else len(head)
    )
    wanted = model.state_dict()
    for key in [*wanted, *given]:
        have = list(given[key].shape) if key in given else "no such tensor"
        want = list(wanted[key].shape) if key in wanted else "no such tensor"
        if have != want:
            fix = f"is it a {name}? name the right one with --model"
            raise UserError(f"{where}: {key}", f"{have}", f"{want}", fix)
    model.load_state_dict(given)
    if image_size is not None:
        resize: Any = getattr(model, "set_input_size", None)
        if resize is None:
            raise UserError(
                "model.image_size",
                f"{image_size} for a {name}",
                "the size it was made for",
                "leave it out",
            )
        resize(img_size=image_size)
    return model


def views_of(model: nn.Module) -> Views:
    """What the model's configuration says of its images."""
    given = resolve_model_data_config(model)
    size = given["input_size"][-1]
    embed: Any = getattr(model, "patch_embed", None)
    if getattr(embed, "img_size", None):  # another one than the configuration's was asked for
        size = embed.img_size[-1]
    return Views(
        size, tuple(given["mean"]), tuple(given["std"]), given["crop_pct"], given["interpolation"]
    )


def file_name_of(name: str) -> str:
    """A name that a folder can have."""
    return str(safe_model_name(name.replace(":", "/").strip("/").replace("/", "_")))


def _created(name: str, where: str, image_size: int | None, **options: Any) -> nn.Module:
    sized = {} if image_size is None else {"img_size": image_size}
    fix = "check the name, the file and what it was written from"
    if options["pretrained"] and name == where:
        fix = "check the name and the network, or name a folder or file that is here"
    try:
        model: nn.Module = timm.create_model(name, **sized, **options)
    except Exception as error:  # timm, the hub and safetensors raise what they like
        what = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            where,
            f"a model that timm cannot open ({what})",
            "weights that belong to their architecture, whole and at hand",
            fix,
        ) from None
    return model


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Without a network the hub warns twelve times in a minute before it says so by an error."""
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hub.setLevel(level)
