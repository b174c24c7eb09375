"""Features of a set, each image once whatever the number of ranks, and their cache."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from supmim_scale.data.loader import Batch
from supmim_scale.errors import RankError, UserError
from supmim_scale.files.progress import progress
from supmim_scale.files.tensors import write_tensors
from supmim_scale.files.whole import whole_file
from supmim_scale.launch.world import World

Encode = Callable[[Tensor], Tensor]
ROWS = 16_384  # of one message between ranks, and of one product on a device


@dataclass(frozen=True)
class Features:
    """N images in the order of their ids: fp32 features, labels padded with -1; on the CPU, but
    for what `on` gives."""

    ids_N: NDArray[np.int64]
    labels_NL: Tensor
    features_ND: Tensor

    def __len__(self) -> int:
        return len(self.ids_N)

    def share(self, world: World) -> "Features":
        """The rows that fall to this rank: disjoint and complete over the ranks. A view."""
        mine = slice(world.rank, None, world.world_size)
        return Features(self.ids_N[mine], self.labels_NL[mine], self.features_ND[mine])

    def rows(self, places: NDArray[np.int64]) -> "Features":
        """Chosen rows, in the order given."""
        return Features(self.ids_N[places], self.labels_NL[places], self.features_ND[places])

    def on(self, device: torch.device) -> "Features":
        """On the device, where they take no more than half of what is free there; else as they
        are, to be uploaded in parts."""
        free = free_bytes(device)
        if free is not None and self.features_ND.nbytes > free // 2:
            return self
        return Features(self.ids_N, self.labels_NL.to(device), self.features_ND.to(device))


def free_bytes(device: torch.device) -> int | None:
    """What can still be allocated on a GPU, after the allocator gave back what it does not use;
    None for the CPU, whose memory is not asked."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return free


@torch.inference_mode()
def extract(
    encode: Encode, batches: Iterable[Batch], world: World, num_images: int, what: str
) -> Features:
    """Collective: features of a whole set on every rank, from each rank's share of its batches.

    A rank takes `num_images` x width x 4 bytes, with several ranks its share of them once more
    until all have them: 4.9 GiB, and 5.5 with 8 ranks, for the 1.28 M images of ImageNet-1k and
    a width of 1024. Raises `RankError` for features that are not finite, whose figures would look
    like any others.
    """
    ids, labels, count = [], [], 0
    mine_ND: Tensor | None = None
    share = -(-num_images // world.world_size)
    with progress(what, share, "image", shown=world.is_main) as bar:
        for batch in batches:
            features_BD = encode(batch.images_BCHW)
            _require_finite(features_BD, batch.ids_B, what)
            if mine_ND is None:
                mine_ND = torch.empty(share, features_BD.shape[1])
            mine_ND[count : count + len(features_BD)] = features_BD
            ids.append(batch.ids_B)
            labels.append(batch.labels_BL.cpu())
            count += len(features_BD)
            bar.update(len(features_BD))
    mine = None
    if mine_ND is not None:
        mine = Features(np.concatenate(ids), torch.cat(labels), mine_ND[:count])
    return _joined(mine, world)


def _joined(mine: Features | None, world: World) -> Features:
    """Collective: the rows of all ranks, in the order of their ids; None is of a rank without."""
    given = None if mine is None else (mine.ids_N, mine.labels_NL, mine.features_ND.shape[1])
    shares = [(rank, *share) for rank, share in enumerate(world.gather(given)) if share is not None]
    ids_N = np.concatenate([ids for _, ids, _, _ in shares])
    labels_NL = torch.cat([labels for _, _, labels, _ in shares])
    order = np.argsort(ids_N)
    assert len(np.unique(ids_N)) == len(ids_N), "an image was counted twice"
    if mine is not None and world.world_size == 1 and (order[1:] > order[:-1]).all():
        return mine
    features_ND = torch.empty(len(ids_N), shares[0][3])
    places_N, start = np.empty_like(order), 0
    places_N[order] = np.arange(len(order))
    for rank, ids, _, width in shares:
        for first in range(0, len(ids), ROWS):
            rows = slice(first, min(first + ROWS, len(ids)))
            part_BD = torch.empty(rows.stop - first, width)
            if rank == world.rank and mine is not None:
                part_BD = mine.features_ND[rows].contiguous()
            features_ND[places_N[start : start + len(part_BD)]] = world.broadcast(part_BD, rank)
            start += len(part_BD)
    return Features(ids_N[order], labels_NL[order], features_ND)


def cached(
    folder: Path | None, key: dict[str, Any], world: World, make: Callable[[], Features]
) -> Features:
    """Collective: features of an earlier call with the same key, or made and kept in `folder`.

    What is kept is mapped into memory: the ranks of a node have one copy, which can be dropped.
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
    return _load(path) if path.exists() else features


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
        raise RankError(
            what,
            f"features of image {image} that are not finite",
            "finite ones",
            "take other weights, or engine.precision=fp32",
        )


def _save(features: Features, path: Path) -> None:
    tensors = {
        "ids": torch.from_numpy(features.ids_N),
        "labels": features.labels_NL,
        "features": features.features_ND,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part:
            write_tensors(tensors, part)
    except (OSError, SafetensorError) as error:
        raise UserError("--out", str(error), "a writable folder", "name another") from None


def _load(path: Path) -> Features:
    try:
        kept = load_file(path)
        return Features(kept["ids"].numpy(), kept["labels"], kept["features"])
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(str(path), str(error), "features that were kept", "remove it") from None
