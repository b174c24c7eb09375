"""From a recipe to the parts it names: the only place where config and models meet."""

from typing import Any

import torch

from supmim_scale.config.schema import RunConfig
from supmim_scale.models.encoder import (
    Geometry,
    VisionTransformer,
    build_encoder,
    geometry,
    init_head_bias,
    timm_arguments,
)
from supmim_scale.models.flops import JointShape
from supmim_scale.models.joint import JointModel, build_joint, default_heads
from supmim_scale.models.masking import MaskSpec
from supmim_scale.models.targets import num_vqgan_codes


def encoder_arguments(config: RunConfig) -> tuple[str, dict[str, Any]]:
    """(timm name, arguments) of the recipe's encoder, for `timm.create_model`."""
    return timm_arguments(config.model.name, **_shape_arguments(config))


def recipe_encoder(config: RunConfig) -> VisionTransformer:
    """The recipe's encoder with its head, initialised under torch's current seed."""
    model = config.model
    built = build_encoder(model.name, drop_path=model.drop_path, **_shape_arguments(config))
    if config.loss.kind == "sigmoid":
        init_head_bias(built)
    return built


def recipe_model(config: RunConfig, out_features: int) -> JointModel:
    """The recipe's joint model in fp32, seeded by the recipe; `out_features` is the target's.

    The global random state is left as it was: modules initialise themselves on the CPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        return build_joint(
            recipe_encoder(config),
            config.model,
            config.loss,
            config.mim,
            out_features=out_features,
            drawn_ratio=config.mask.ratio_max is not None,
        )


def encoder_geometry(config: RunConfig) -> Geometry:
    """The encoder's shape, from a build on the meta device."""
    with torch.device("meta"):
        return geometry(recipe_encoder(config))


def encoder_params(config: RunConfig) -> int:
    """Parameters of the encoder without its head: the N of scaling laws."""
    with torch.device("meta"):
        named = recipe_encoder(config).named_parameters()
    return sum(p.numel() for name, p in named if not name.startswith("head."))


def target_features(config: RunConfig) -> int:
    """Values that the decoder predicts per patch, without building the target."""
    if not config.mim.weight:
        return 0
    if config.mim.target == "pixel":
        return 3 * encoder_geometry(config).patch_size ** 2
    if config.mim.target == "codebook":
        return config.mim.codebook_size
    return num_vqgan_codes(config.mim.vqgan)


def mask_spec(config: RunConfig, grid: int) -> MaskSpec:
    """How the recipe masks a grid of patches."""
    return MaskSpec(grid, config.mask)


def joint_shape(config: RunConfig, out_features: int, micro_batch: int = 0) -> JointShape:
    """The shape that `flops.step_flops` reads; `micro_batch` 0: the limit of a very large one."""
    shape = encoder_geometry(config)
    spec = mask_spec(config, shape.grid)
    return JointShape(
        width=shape.width,
        depth=shape.depth,
        mlp=shape.mlp,
        patch_size=shape.patch_size,
        num_patches=shape.num_patches,
        num_prefix_tokens=shape.num_prefix_tokens,
        num_classes=shape.num_classes,
        pool=shape.pool,
        drop_path=config.model.drop_path,
        kept_of=(micro_batch or 1_000_000) if config.model.drop_path_kept else None,
        layout=config.mim.layout if config.mim.weight else None,
        num_visible=spec.num_visible,
        num_predicted=spec.num_predicted,
        decoder_width=config.model.decoder_width or shape.width,
        decoder_depth=config.model.decoder_depth,
        out_features=out_features,
    )


def attention_shapes(config: RunConfig, micro_batch: int) -> list[tuple[int, int, int, int, int]]:
    """(images, heads, queries, keys, width of a head) of each attention of a step."""
    shape = encoder_geometry(config)
    count, head = shape.num_prefix_tokens, shape.width // shape.heads
    tokens = count + shape.num_patches
    shapes = [(micro_batch, shape.heads, tokens, tokens, head)]
    if shape.pool == "map":  # one query, of timm's attention pooling
        shapes.append((micro_batch, shape.heads, 1, tokens, head))
    if not config.mim.weight:
        return shapes
    width = config.model.decoder_width or shape.width
    heads = config.model.decoder_heads or default_heads(width)
    patches = shape.num_patches
    shapes.append((micro_batch, heads, patches, patches, width // heads))
    if config.mim.layout == "clean_and_masked":
        visible = mask_spec(config, shape.grid).num_visible
        shapes.append((micro_batch, shape.heads, count + visible, count + visible, head))
    return shapes


def _shape_arguments(config: RunConfig) -> dict[str, Any]:
    model = config.model
    return {
        "num_classes": model.num_classes,
        "image_size": model.image_size,
        "pool": model.pool,
        "class_token": model.class_token,
        "patch_size": model.patch_size,
        "width": model.width,
        "depth": model.depth,
        "heads": model.heads,
    }
