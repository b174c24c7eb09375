"""Top-1 and top-5: of a model while its batches come, or of logits that are at hand."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from supmim_scale.data.loader import Batch
from supmim_scale.files.progress import progress
from supmim_scale.launch.world import World

_NO_CLASS = -2  # -1 pads labels


@torch.inference_mode()
def evaluate(
    encoder: nn.Module, batches: Iterable[Batch], world: World, num_images: int, precision: str
) -> dict[str, float]:
    """Collective: `top1`, `top5` as shares, and `images`, each image counted once.

    With several labels an image, a hit is any of them. `precision`: fp32 or bf16.
    """
    encoder.eval().to(world.device)
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)
    share = -(-num_images // world.world_size)
    with progress("eval", share, "image", shown=world.is_main) as bar:
        for batch in batches:
            with autocast(world.device, precision):
                logits_BK = encoder(batch.images_BCHW)
            sums += hits(logits_BK, batch.labels_BL)
            bar.update(len(logits_BK))
    top1, top5, images = world.sum(sums).tolist()
    return {"top1": top1 / images, "top5": top5 / images, "images": images}


def hits(scores_BK: Tensor, labels_BL: Tensor) -> Tensor:
    """(top-1 hits, top-5 hits, images) in float64; labels are padded with -1.

    Equal scores: the class with the lower id stands first. A score of -inf is no choice.
    """
    top_B5 = ranked(scores_BK, 5)
    top_B5 = top_B5.where(scores_BK.gather(1, top_B5) > -torch.inf, _NO_CLASS)
    hits_B5 = (top_B5.unsqueeze(-1) == labels_BL.unsqueeze(1)).any(dim=-1)
    counts = (hits_B5[:, 0].sum(), hits_B5.any(dim=1).sum())
    images = torch.tensor(len(scores_BK), dtype=torch.float64, device=scores_BK.device)
    return torch.stack([*(count.double() for count in counts), images])


def ranked(scores_BK: Tensor, count: int) -> Tensor:
    """(B, up to `count`) classes by falling score, equal scores by rising id."""
    return scores_BK.sort(dim=1, descending=True, stable=True).indices[:, :count]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Forward passes in `precision`, fp32 or bf16."""
    return torch.autocast(device.type, torch.bfloat16, precision == "bf16")
