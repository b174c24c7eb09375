"""Weights on disk: one safetensors file of whole fp32 tensors, written atomically."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from supmim_scale.errors import UserError
from supmim_scale.files.tensors import write_tensors
from supmim_scale.files.whole import whole_file
from supmim_scale.models.convert import has_relative_positions, plain_tensors
from supmim_scale.models.encoder import VisionTransformer, resampled_positions
from supmim_scale.models.joint import JointModel, is_head
from supmim_scale.models.timm_models import advice, is_named, open_named

_ENCODER, _TIMM = "encoder.", "timm/"
# Of a model with a class token, another head or another pooling than the one that starts from it.
_MAY_BE_OVER = tuple(_ENCODER + name for name in ("cls_token", "head", "fc_norm.", "norm."))


def save_weights(weights: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write the file, whole and on disk or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, sync=True) as part:
        write_tensors(weights, part, metadata)


def start_from(model: JointModel, source: str | Path) -> list[str]:
    """Fill a new model from weights of another run, or of timm; returns what was left as it was,
    and what of theirs was not taken.

    `source` is a safetensors file, a folder with `model.safetensors`, or timm/NAME, whose published
    weights timm fetches. Position embeddings are resampled to the model's grid; a head for other
    classes is left. Raises `UserError` naming the first encoder tensor that is missing, of another
    shape, or has no place.
    """
    source = str(source)
    given, not_taken = _given_tensors(source)
    wanted, filled, left = model.state_dict(), dict[str, Tensor](), list[str]()
    _require_places(given, wanted, source)
    for name, own in wanted.items():
        value = given.get(name)
        if value is None and name.startswith(_ENCODER + "norm."):  # timm's name with avg pooling
            value = given.get(name.replace("norm.", "fc_norm.", 1))
        if value is not None and name == _ENCODER + "pos_embed":
            value = resampled_positions(model.encoder, value, source)
        if value is not None and value.shape == own.shape:
            filled[name] = value
        elif name.startswith(_ENCODER) and not is_head(name) and not _is_beits(name, not_taken):
            have = list(value.shape) if value is not None else "no such tensor"
            raise UserError(
                f"{source}: {name}", f"{have}", f"{list(own.shape)}", "take weights of this encoder"
            )
        else:
            left.append(name)
    model.load_state_dict(filled, strict=False)
    return left + [f"not taken {name}" for name in not_taken]


def require_source(source: str) -> None:
    """Raise `UserError` where `start_from` would find nothing; timm's hub is not asked."""
    path, name = Path(source), source.removeprefix(_TIMM)
    if source.startswith(_TIMM) and not path.exists():
        if not is_named(name):
            raise UserError(
                "model.init_from", f"'{source}'", "timm/ and a name of timm's", advice(name)
            )
    elif not (path / "model.safetensors" if path.is_dir() else path).is_file():
        raise UserError(
            "model.init_from",
            f"no file {path / 'model.safetensors' if path.is_dir() else path}",
            "a safetensors file, a folder with model.safetensors, or timm/NAME",
            "check the path",
        )


def _require_places(given: dict[str, Tensor], wanted: dict[str, Tensor], source: str) -> None:
    """Raise `UserError` for an encoder's tensor, a register token say, without which it would be
    another function and for which the model has no place."""
    for name in given.keys() - wanted.keys():
        if name.startswith(_ENCODER) and not name.startswith(_MAY_BE_OVER):
            raise UserError(
                f"{source}: {name}",
                "a tensor that this encoder has no place for",
                "weights of this encoder",
                "take another checkpoint",
            )


def _given_tensors(source: str) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors named as a run's, and the names of those of other projects that are not taken."""
    path = Path(source)
    if source.startswith(_TIMM) and not path.exists():
        given = dict(open_named(source.removeprefix(_TIMM)).state_dict())
    else:
        given, _ = read_weights(path / "model.safetensors" if path.is_dir() else path)
    if any(name.startswith(_ENCODER) for name in given):
        return given, []
    tensors, not_taken = plain_tensors(given)  # the encoder alone
    return {_ENCODER + name: value for name, value in tensors.items()}, not_taken


def _is_beits(name: str, not_taken: list[str]) -> bool:
    """Whether a tensor is missing because BEiT has relative positions in its place."""
    return name == _ENCODER + "pos_embed" and has_relative_positions(not_taken)


def load_encoder(
    encoder: VisionTransformer, path: Path, *, resample: bool = False
) -> dict[str, str]:
    """Fill a timm encoder from a run's weights; returns the file's metadata.

    `resample`: positions of another grid are resampled. Raises `UserError` naming the first tensor
    that is missing, of another shape, or has no place.
    """
    given, metadata = read_weights(path)
    found = {
        name.removeprefix(_ENCODER): value
        for name, value in given.items()
        if name.startswith(_ENCODER)
    }
    if resample and "pos_embed" in found:
        found["pos_embed"] = resampled_positions(encoder, found["pos_embed"], str(path))
    load_exactly(encoder, found, path)
    return metadata


def load_exactly(model: nn.Module, given: dict[str, Tensor], path: Path) -> None:
    """Fill a model with the tensors of `path`. Raises `UserError` naming the first that is missing,
    of another shape, or has no place."""
    wanted = model.state_dict()
    for name, tensor in wanted.items():
        if name not in given or given[name].shape != tensor.shape:
            have = list(given[name].shape) if name in given else "no such tensor"
            raise UserError(
                f"{path}: {name}", f"{have}", f"{list(tensor.shape)}", "use the run's own recipe"
            )
    for name in given:
        if name not in wanted:
            raise UserError(
                f"{path}: {name}",
                "a tensor without a place",
                "weights of this model",
                "use the run's own recipe",
            )
    model.load_state_dict(given)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A safetensors file's tensors and metadata. Raises `UserError` for another or broken one."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise UserError(str(path), str(error), "a safetensors file", "check the path") from None
