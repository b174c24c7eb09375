"""The vision transformer sizes this project names, with where each shape was published.

Any other timm name of a plain `VisionTransformer` works as well: the geometry is then read
from the built model (`models.encoder.geometry`).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """One published encoder shape."""

    timm_name: str
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp: int
    source: str


_VIT = "Dosovitskiy et al. 2021 (arXiv 2010.11929), table 1"
_DEIT = "Touvron et al. 2021 (arXiv 2012.12877), table 1"
_SCALING = "Zhai et al. 2022 (arXiv 2106.04560), table 2"
_B14 = "arXiv 2312.00950 trains ViT-B/14; B's shape from " + _VIT

VARIANTS: dict[str, Variant] = {
    "vit_ti16": Variant("vit_tiny_patch16_224", 16, 192, 12, 3, 768, _DEIT),
    "vit_s16": Variant("vit_small_patch16_224", 16, 384, 12, 6, 1536, _DEIT),
    "vit_b16": Variant("vit_base_patch16_224", 16, 768, 12, 12, 3072, _VIT),
    "vit_b14": Variant("vit_base_patch16_224", 14, 768, 12, 12, 3072, _B14),
    "vit_l16": Variant("vit_large_patch16_224", 16, 1024, 24, 16, 4096, _VIT),
    "vit_l14": Variant("vit_large_patch14_224", 14, 1024, 24, 16, 4096, _VIT),
    "vit_h14": Variant("vit_huge_patch14_224", 14, 1280, 32, 16, 5120, _VIT),
    "vit_g14": Variant("vit_giant_patch14_224", 14, 1408, 40, 16, 6144, _SCALING),
    "vit_gg14": Variant("vit_gigantic_patch14_224", 14, 1664, 48, 16, 8192, _SCALING),
}
