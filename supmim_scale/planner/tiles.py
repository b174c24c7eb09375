"""Whether the tokens of an attention call are a whole number of the kernel's tiles."""

from supmim_scale.build.model import encoder_geometry, mask_spec
from supmim_scale.config import RunConfig

# Rows of queries in a tile of FlashAttention-2's forward without dropout, the kernel in torch, at
# any width of a head up to 192; keys come in 128s up to a width of 64 and in 64s above it (80 and
# 88 run as 96): csrc/flash_attn/src/flash_fwd_launch_template.h of Dao-AILab/flash-attention.
# FlashAttention-3 on Hopper has 192 x 192, 192 x 144 and 128 x 176 at widths of 64, 96 and 128
# (hopper/tile_size.h there), which 256 tokens do not fill.
TILE = 128
_GRIDS = range(1, 65)


def tokens_of(config: RunConfig) -> dict[str, int]:
    """Tokens that an attention call sees, by pass."""
    shape = encoder_geometry(config)
    count, patches = shape.num_prefix_tokens, shape.num_patches
    if not config.mim.weight:
        return {"clean pass": count + patches}
    seen = {"clean pass": count + patches, "masked pass": count + patches, "decoder": patches}
    if config.mim.layout == "masked_only":
        del seen["clean pass"]
    if config.mim.layout == "clean_and_masked":
        seen["masked pass"] = count + mask_spec(config, shape.grid).num_visible
    return seen


def wasted(tokens: int) -> float:
    """Share of the last tile that has no token."""
    return -tokens % TILE / TILE


def tile_line(config: RunConfig) -> str | None:
    """What is not whole, and what would make it so; None: nothing."""
    seen = tokens_of(config)
    parts = [
        f"{name} {tokens} tokens ({wasted(tokens):.0%} of the last tile empty)"
        for name, tokens in seen.items()
        if tokens % TILE
    ]
    if not parts:
        return None
    return f"attention tiles of {TILE} queries are not whole: {', '.join(parts)}; {_advice(config)}"


def _advice(config: RunConfig) -> str:
    shape, size = encoder_geometry(config), config.model.image_size
    count, patch = shape.num_prefix_tokens, size // shape.grid
    grids = [grid for grid in _GRIDS if (grid * grid + count) % TILE == 0]
    if not grids:
        return f"no square of patches is whole beside {count} other tokens (model.class_token)"
    grid = min(grids, key=lambda one: abs(one - shape.grid))
    ways = [f"model.image_size={grid * patch}"]
    if size % grid == 0:
        ways.append(f"model.patch_size={size // grid}")
    ways = [] if grid == shape.grid else [" or ".join(ways)]
    drops = config.mim.weight and config.mim.layout == "clean_and_masked"
    if drops:
        ratio = _whole_ratio(config, grid, count)
        if ratio is None:
            ways.append(f"a mask.ratio that leaves {TILE} tokens, at most mask.ratio_max")
        elif ratio != config.mask.ratio:
            ways.append(f"mask.ratio={ratio:g}")
    return f"whole with {' and '.join(ways)}"


def _whole_ratio(config: RunConfig, grid: int, count: int) -> float | None:
    """The ratio nearest to the recipe's with whole tiles of visible tokens, of drawn ratios the
    smallest; None: none is as small as the largest."""
    patches, most = grid * grid, config.mask.ratio_max or 1.0
    ratios = [round(1 - (whole - count) / patches, 4) for whole in range(TILE, patches, TILE)]
    allowed = [ratio for ratio in ratios if ratio <= most]
    return min(allowed, key=lambda ratio: abs(ratio - config.mask.ratio), default=None)
