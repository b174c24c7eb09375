"""The encoder: a timm `VisionTransformer`, unchanged, so that what is exported is timm's."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from supmim_scale.errors import UserError
from supmim_scale.models.blocks import run_blocks
from supmim_scale.models.torchvision_ops import declare_missing_ops
from supmim_scale.sizes import VARIANTS

declare_missing_ops()

import timm  # noqa: E402
from timm.layers import resample_abs_pos_embed  # noqa: E402
from timm.models import save_for_hf  # noqa: E402
from timm.models.vision_transformer import Block, VisionTransformer  # noqa: E402

__all__ = ["Block", "Geometry", "VisionTransformer", "build_encoder", "geometry", "timm_arguments"]


@dataclass(frozen=True)
class Geometry:
    """What the rest of the package needs to know of an encoder's shape."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp: int
    num_patches: int
    num_prefix_tokens: int
    num_classes: int
    pool: str

    @property
    def grid(self) -> int:
        """Patches along a side of the image."""
        return self.image_size // self.patch_size


def timm_arguments(
    name: str,
    *,
    num_classes: int,
    image_size: int,
    pool: str,
    class_token: bool,
    patch_size: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
) -> tuple[str, dict[str, Any]]:
    """(timm name, keyword arguments) that rebuild the encoder with plain `timm.create_model`.

    The final norm stands before the pooling (`fc_norm=False`), as in big_vision, so that the
    decoder reads normalised tokens whatever the pooling is.
    """
    variant = VARIANTS.get(name)
    timm_name = variant.timm_name if variant else name
    if variant and patch_size is None:
        patch_size = variant.patch_size
    arguments: dict[str, Any] = {
        "num_classes": num_classes,
        "img_size": image_size,
        "global_pool": pool,
        "class_token": class_token,
        "fc_norm": False,
    }
    shape = {"patch_size": patch_size, "embed_dim": width, "depth": depth, "num_heads": heads}
    return timm_name, arguments | {k: v for k, v in shape.items() if v is not None}


def build_encoder(name: str, *, drop_path: float = 0.0, **shape: Any) -> VisionTransformer:
    """A randomly initialised encoder with its head; `shape` as in `timm_arguments`.

    Raises `UserError` where timm has no such model or it is no plain VisionTransformer.
    """
    timm_name, arguments = timm_arguments(name, **shape)
    if not timm.is_model(timm_name):
        close = timm.list_models(f"*{timm_name.split('_')[0]}*patch*")[:3]
        raise UserError(
            "model.name",
            f"'{name}'",
            f"one of {', '.join(VARIANTS)} or a timm name",
            f"timm's list_models() has, for instance, {', '.join(close) or 'vit_*'}",
        )
    try:
        encoder = timm.create_model(timm_name, drop_path_rate=drop_path, **arguments)
    except (TypeError, AssertionError, ValueError) as error:
        raise _not_plain(name, " ".join(str(error).split())) from None
    if type(encoder) is not VisionTransformer:
        raise _not_plain(name, type(encoder).__name__)
    mlp = encoder.blocks[0].mlp
    if mlp.fc1.out_features != mlp.fc2.in_features:
        raise _not_plain(name, "a gated MLP (SwiGLU), whose FLOPs are not counted")
    size, patch = shape["image_size"], encoder.patch_embed.patch_size[0]
    if size % patch:
        raise UserError(
            "model.image_size",
            f"{size}, which patches of {patch} do not divide",
            f"a multiple of {patch}",
            f"set model.image_size={size // patch * patch or patch}",
        )
    return encoder


def geometry(encoder: VisionTransformer) -> Geometry:
    """The shape of a built encoder; works on the meta device."""
    block = encoder.blocks[0]
    return Geometry(
        image_size=encoder.patch_embed.img_size[0],
        patch_size=encoder.patch_embed.patch_size[0],
        width=encoder.embed_dim,
        depth=len(encoder.blocks),
        heads=block.attn.num_heads,
        mlp=block.mlp.fc1.out_features,
        num_patches=encoder.patch_embed.num_patches,
        num_prefix_tokens=encoder.num_prefix_tokens,
        num_classes=encoder.num_classes,
        pool=encoder.global_pool,
    )


def encode(encoder: VisionTransformer, *passes: tuple[Tensor, Tensor | None]) -> tuple[Tensor, ...]:
    """Encoder tokens (B, prefix + N or V, D) of each pass, from its (embedded patches (B, N, D),
    patches to keep (B, V) or None for all).

    Several passes need blocks of `join_passes`.
    """
    tokens = [_positioned(encoder, patches_BND, keep_BV) for patches_BND, keep_BV in passes]
    return tuple(encoder.norm(tokens_BTD) for tokens_BTD in run_blocks(encoder.blocks, tokens))


def _positioned(encoder: VisionTransformer, patches_BND: Tensor, keep_BV: Tensor | None) -> Tensor:
    """Tokens before the blocks. Positions are added before patches are dropped, so a kept patch
    knows where it was."""
    tokens_BTD = encoder._pos_embed(patches_BND)
    if keep_BV is not None:
        prefix = encoder.num_prefix_tokens
        tokens_BTD = torch.cat(
            [tokens_BTD[:, :prefix], take(tokens_BTD[:, prefix:], keep_BV)], dim=1
        )
    return encoder.norm_pre(tokens_BTD)  # type: ignore[no-any-return]


def take(values_BND: Tensor, index_BM: Tensor) -> Tensor:
    """`values_BND[b, index_BM[b, m]]` as (B, M, D)."""
    return values_BND.gather(1, index_BM.unsqueeze(-1).expand(-1, -1, values_BND.shape[-1]))


def resampled_positions(encoder: VisionTransformer, given_1ND: Tensor, where: str) -> Tensor:
    """Position embeddings of another grid, or with a class token more, as this encoder has them.

    Raises `UserError` where the encoder has a class token and they do not.
    """
    own, grid = encoder.num_prefix_tokens, encoder.patch_embed.grid_size
    prefix = given_1ND.shape[1] - math.isqrt(given_1ND.shape[1]) ** 2  # tokens beside the square
    if own > prefix:
        raise UserError(
            f"{where}: pos_embed",
            f"{given_1ND.shape[1]} positions without a class token",
            "one for the class token too",
            "set model.class_token=false",
        )
    given_1ND = given_1ND[:, prefix - own :]
    resampled: Tensor = resample_abs_pos_embed(
        given_1ND, new_size=list(grid), num_prefix_tokens=own
    )
    return resampled


def init_head_bias(encoder: VisionTransformer) -> None:
    """Head bias to -log(classes): every sigmoid starts at the prior 1/K (big_vision)."""
    nn.init.constant_(encoder.head.bias, -math.log(encoder.num_classes))


def save_timm_folder(
    encoder: VisionTransformer,
    arguments: dict[str, Any],
    out: Path,
    *,
    mean: float,
    std: float,
    crop: float,
) -> None:
    """Write `model.safetensors` and `config.json` as timm's `local-dir:` source opens them.

    `arguments` are those of `timm_arguments`; mean, std and crop are the evaluation's.
    """
    size = encoder.patch_embed.img_size[0]
    save_for_hf(
        encoder,
        str(out),
        model_args=arguments,
        safe_serialization=True,
        data_config={
            "input_size": (3, size, size),
            "mean": (mean,) * 3,
            "std": (std,) * 3,
            "crop_pct": crop,
            "interpolation": "bilinear",
        },
    )


def _not_plain(name: str, found: str) -> UserError:
    return UserError(
        "model.name",
        f"'{name}' ({found})",
        "a model of timm's plain VisionTransformer class",
        "choose a vit_* name without windows, rotary positions or a convolutional stem",
    )
