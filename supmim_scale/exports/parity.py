"""How close logits of what was written come to those of the model it was written from."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FP32 = 1e-6  # the same operations on the same numbers
# Another runtime orders its sums otherwise: 7e-7 were measured on a ViT-L/16, whose logits in fp32
# are themselves 4e-7 from those in fp64; deeper and wider models have room.
RUNTIME = 1e-5


@dataclass(frozen=True, repr=False)
class Parity:
    """`largest` difference of a logit, relative to the largest logit where that is above 1, and the
    `limit` above which nothing is written."""

    reader: str
    largest: float
    limit: float
    images: int

    def __repr__(self) -> str:
        """For people."""
        return (
            f"{self.reader}: logits of {self.images} images differ by at most "
            f"{self.largest:.1e} (limit {self.limit:.0e})"
        )


@torch.inference_mode()
def compare(
    reader: str,
    model: Callable[[Tensor], Tensor],
    other: Callable[[Tensor], Tensor],
    images_BCHW: Tensor,
    limit: float,
) -> Parity:
    """The parity of two models in fp32. Raises `RuntimeError` above `limit`: nothing that computes
    something else is left behind."""
    ours_BK, theirs_BK = model(images_BCHW), other(images_BCHW)
    scale = max(1.0, ours_BK.abs().max().item())
    largest = (ours_BK - theirs_BK).abs().max().item() / scale
    if not largest <= limit:
        raise RuntimeError(f"{reader} gives logits that differ by {largest:.1e}, above {limit:.0e}")
    return Parity(reader, largest, limit, len(images_BCHW))
