"""How close logits of what was written come to those of the model it was written from."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FP32 = 1e-6  # the same operations on the same numbers
RUNTIME = 1e-4  # another runtime orders its sums otherwise


@dataclass(frozen=True)
class Parity:
    """`largest` difference of a logit, relative to the largest logit where that is above 1."""

    reader: str
    largest: float
    images: int

    def __str__(self) -> str:
        return f"{self.reader}: logits of {self.images} images differ by at most {self.largest:.1e}"


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
    return Parity(reader, largest, len(images_BCHW))
