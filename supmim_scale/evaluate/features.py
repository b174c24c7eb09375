"""Features of a set, each image once whatever the number of ranks, and their cache."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from supmim_scale.data.loader import Batch
from supmim_scale.engine.world import World
from supmim_scale.errors import RankError, UserError
from supmim_scale.progress import progress

Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Features:
    """Of N images in the order of their ids, on the CPU: fp32 features, labels padded with -1."""

    ids_N: NDArray[np.int64]
    labels_NL: Tensor
    features_ND: Tensor

    def __len__(self) -> int:
        return len(self.ids_N)

    def share(self, world: World) -> "Features":
        """The rows that fall to this rank: disjoint and complete over the ranks."""
        return self.rows(np.arange(world.rank, len(self), world.world_size))

    def rows(self, places: NDArray[np.int64]) -> "Features":
        """Chosen rows, in the order given."""
        return Features(self.ids_N[places], self.labels_NL[places], self.features_ND[places])


@torch.inference_mode()
def extract(
    encode: Encode, batches: Iterable[Batch], world: World, num_images: int, what: str
) -> Features:
    """Collective: features of a whole set on every rank, from each rank's share of its batches.

    A set takes `num_images` x width x 4 bytes a rank. Raises `RankError` for features that are not
    finite, whose figures would look like any others.
    """
    ids, labels, features = [], [], []
    share = -(-num_images // world.world_size)
    with progress(what, share, "image", shown=world.is_main) as bar:
        for batch in batches:
            features_BD = encode(batch.images_BCHW)
            _require_finite(features_BD, batch.ids_B, what)
            ids.append(batch.ids_B)
            labels.append(batch.labels_BL.cpu().numpy())
            features.append(features_BD.float().cpu().numpy())
            bar.update(len(features_BD))
    mine = [np.concatenate(parts) if parts else None for parts in (ids, labels, features)]
    shares = [share for share in world.gather(mine) if share[0] is not None]
    ids_N, labels_NL, features_ND = (np.concatenate(parts) for parts in zip(*shares, strict=True))
    order = np.argsort(ids_N)
    assert len(np.unique(ids_N)) == len(ids_N), "an image was counted twice"
    labels_and_features = (torch.from_numpy(rows[order]) for rows in (labels_NL, features_ND))
    return Features(ids_N[order], *labels_and_features)


def cached(
    folder: Path | None, key: dict[str, Any], world: World, make: Callable[[], Features]
) -> Features:
    """Collective: features of an earlier call with the same key, or made and kept in `folder`.

    Raises `UserError` for a file that cannot be read or written.
    """
    if folder is None:
        return make()
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"features-{name}.safetensors"
    if all(world.gather(path.exists())):  # of nodes without a shared folder some may lack it
        return _load(path)
    features = make()
    world.main_first(lambda: _save(features, path) if world.is_main else None)
    return features


def weights_digest(model: nn.Module) -> str:
    """Sixteen hex digits of all tensors of a model."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _require_finite(features_BD: Tensor, ids_B: NDArray[np.int64], what: str) -> None:
    is_bad_B = ~features_BD.isfinite().all(dim=1)
    if is_bad_B.any():
        image = ids_B[int(is_bad_B.nonzero()[0])]
        raise RankError(what, f"features of image {image} that are not finite", "finite ones",
                        "take other weights, or engine.precision=fp32")  # fmt: skip


def _save(features: Features, path: Path) -> None:
    tensors = {
        "ids": torch.from_numpy(features.ids_N),
        "labels": features.labels_NL,
        "features": features.features_ND,
    }
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part)
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        raise UserError("--out", str(error), "a writable folder", "name another") from None


def _load(path: Path) -> Features:
    try:
        kept = load_file(path)
        return Features(kept["ids"].numpy(), kept["labels"], kept["features"])
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(str(path), str(error), "features that were kept", "remove it") from None
