"""Top-1 and top-5 of the exported encoder: plain timm, no decoder, no engine."""

from collections.abc import Iterable

import torch
from torch import nn
from tqdm import tqdm

from supmim_scale.data.loader import Batch
from supmim_scale.engine.world import World


@torch.inference_mode()
def evaluate(
    encoder: nn.Module, batches: Iterable[Batch], world: World, num_images: int
) -> dict[str, float]:
    """Collective: `top1`, `top5` as shares, and `images`, each image counted once.

    With several labels an image, a hit is any of them.
    """
    encoder.eval().to(world.device)
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)
    share = -(-num_images // world.world_size)
    with tqdm(total=share, desc="eval", unit="image", disable=_quiet(world), leave=False) as bar:
        for batch in batches:
            with torch.autocast(world.device.type, torch.bfloat16, world.device.type == "cuda"):
                logits_BK = encoder(batch.images_BCHW)
            top_B5 = logits_BK.topk(min(5, logits_BK.shape[1]), dim=1).indices
            hits_B5 = (top_B5.unsqueeze(-1) == batch.labels_BL.unsqueeze(1)).any(dim=-1)
            sums += torch.stack(
                [
                    hits_B5[:, 0].sum().double(),
                    hits_B5.any(dim=1).sum().double(),
                    torch.tensor(len(logits_BK), dtype=torch.float64, device=world.device),
                ]
            )
            bar.update(len(logits_BK))
    top1, top5, images = world.sum(sums).tolist()
    return {"top1": top1 / images, "top5": top5 / images, "images": images}


def _quiet(world: World) -> bool | None:
    return None if world.is_main else True
