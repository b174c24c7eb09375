"""k-NN classification and image retrieval by cosine similarity, exact, in chunks on the device.

Similarities are float64 and compared to 2^-36 (1.5e-11), so that what is equal but for rounding
is equal whatever the chunks, ranks and device, up to values on a rounding boundary; equals stand
in the order of the bank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from supmim_scale.errors import UserError
from supmim_scale.evaluation.classify import hits
from supmim_scale.evaluation.features import ROWS, Features, free_bytes
from supmim_scale.files.progress import progress
from supmim_scale.launch.world import World
from supmim_scale.units import gib

K, TEMPERATURE = 20, 0.07  # Caron et al. 2021 (arXiv 2104.14294), section 4.1
PLAIN_K = (1, 10, 100)
RECALL_AT = (1, 5, 10)

_LEVELS = 36  # bits of a similarity that are compared
_CHUNK = 1 << 25  # similarities at a time
_ALIVE = 5  # of a chunk, 8 bytes each: similarities, levels, two of a sort; places


@dataclass(frozen=True)
class KnnSettings:
    """`k` neighbours vote, each with exp(similarity / `temperature`)."""

    k: int = K
    temperature: float = TEMPERATURE


def neighbours(
    queries_QD: Tensor, bank_ND: Tensor, k: int, chunk: int = _CHUNK
) -> tuple[Tensor, Tensor]:
    """(similarities in float64, places in the bank), each (Q, `k`), the nearest first.

    On the bank's device, of which no second copy is made: it is normalised in parts, anew for
    every chunk of queries. Raises `UserError` where the bank has fewer rows than `k`.
    """
    require_bank(len(bank_ND), k)
    found = []
    for part_QD in queries_QD.split(max(1, chunk // len(bank_ND))):
        unit_QD = _unit(part_QD.to(bank_ND.device))
        parts = [unit_QD @ _unit(rows_ND).T for rows_ND in bank_ND.split(ROWS)]
        found.append(_ranking(torch.cat(parts, dim=1), k))
    similar, places = zip(*found, strict=True)
    return torch.cat(similar), torch.cat(places)


def require_bank(images: int, k: int) -> None:
    """Raise `UserError` where a bank of so many images cannot give `k` neighbours."""
    if not 0 < k <= images:
        raise UserError("--knn-k", f"{k}", f"1 to {images}, the images of the bank", "lower it")


def require_room(images: int, width: int, free: int | None) -> None:
    """Raise `UserError` where the least that a bank and a chunk's ranking take is more than `free`
    bytes; None asks nothing. What a sort takes for itself is not counted."""
    bank, chunk = 8 * images * width, 8 * _ALIVE * max(_CHUNK, images)
    if free is None or bank + chunk <= free:
        return
    raise UserError(
        "k-NN",
        f"a bank of {images} images x {width} in float64, {gib(bank)}, and {gib(chunk)} for "
        f"ranking, where the GPU has {gib(free)} free",
        "a bank that fits",
        "take fewer images (another data.train; log.knn_images in training), a GPU with more "
        "memory, or the CPU by CUDA_VISIBLE_DEVICES=",
    )


def free_everywhere(world: World) -> int | None:
    """Collective: free bytes of the fullest rank's GPU, so that all ranks decide alike; None
    without GPUs."""
    return min(
        (free for free in world.gather(free_bytes(world.device)) if free is not None), default=None
    )


def vote(
    similar_QK: Tensor, labels_QKL: Tensor, num_classes: int, temperature: float | None
) -> Tensor:
    """(Q, classes) votes of neighbours for their labels, which are padded with -1.

    A vote weighs exp(similarity / temperature), or 1 where the temperature is None.
    """
    weights_QK = torch.ones_like(similar_QK)
    if temperature is not None:
        # Relative to the nearest, so that no temperature overflows; the order is the same.
        weights_QK = ((similar_QK - similar_QK[:, :1]) / temperature).exp()
    votes_QC = weights_QK.new_zeros(len(similar_QK), num_classes + 1)
    weights_QKL = weights_QK.unsqueeze(-1).expand(-1, -1, labels_QKL.shape[-1])
    places_QKL = labels_QKL.where(labels_QKL >= 0, num_classes)
    votes_QC.scatter_add_(1, places_QKL.flatten(1), weights_QKL.flatten(1))
    return votes_QC[:, :num_classes]


def _voted(votes_QC: Tensor) -> Tensor:
    """Votes, with classes that no neighbour has as no choice at all."""
    return votes_QC.where(votes_QC > 0, -torch.inf)


def average_precision(relevant_QN: Tensor) -> Tensor:
    """(Q,) average precision of rankings, the nearest first; NaN where nothing is relevant."""
    hits_QN = relevant_QN.double()
    places_N = torch.arange(1, hits_QN.shape[1] + 1, device=hits_QN.device)
    return (hits_QN * hits_QN.cumsum(1) / places_N).sum(1) / hits_QN.sum(1)


def relevant(labels_QL: Tensor, bank_labels_NM: Tensor) -> Tensor:
    """(Q, N): whether query and image of the bank share a label; -1 is none."""
    shared_QN = torch.zeros(
        len(labels_QL), len(bank_labels_NM), dtype=torch.bool, device=labels_QL.device
    )
    for a_Q in labels_QL.T:
        for b_N in bank_labels_NM.T:
            shared_QN |= (a_Q.unsqueeze(1) == b_N) & (a_Q >= 0).unsqueeze(1)
    return shared_QN


def knn_figures(
    bank: Features, queries: Features, num_classes: int, settings: KnnSettings, world: World
) -> dict[str, float]:
    """Collective: k-NN top-1 and top-5, weighted and plain, recall@k (a relevant image among the
    k nearest) and mAP of retrieval. Ranks share the queries; each holds the bank on its device, in
    float64: images x width x 8 bytes.

    Queries without a relevant image in the bank count in top-1 alone. Raises `UserError` on all
    ranks for a bank that does not fit.
    """
    require_bank(len(bank), settings.k)
    require_room(len(bank), bank.features_ND.shape[1], free_everywhere(world))
    mine, device = queries.share(world), world.device
    bank_ND, bank_labels_NL = _unit_bank(bank.features_ND, device), bank.labels_NL.to(device)
    plain = [k for k in PLAIN_K if k <= len(bank)]
    votes = [(settings.k, settings.temperature), *((k, None) for k in plain)]
    sums = torch.zeros(3 * len(votes) + len(RECALL_AT) + 2, dtype=torch.float64, device=device)
    rows = max(1, _CHUNK // len(bank))
    with progress("k-NN", len(mine), "query", shown=world.is_main) as bar:
        for part_QD, labels_QL in zip(
            mine.features_ND.split(rows), mine.labels_NL.to(device).split(rows), strict=True
        ):
            unit_QD = _unit(part_QD.to(device))
            similar_QN, places_QN = _ranking(unit_QD @ bank_ND.T, len(bank))
            most = max(k for k, _ in votes)
            near_QKL = bank_labels_NL[places_QN[:, :most]]
            counts = [
                hits(_voted(vote(similar_QN[:, :k], near_QKL[:, :k], num_classes, t)), labels_QL)
                for k, t in votes
            ]
            good_QN = relevant(labels_QL, bank_labels_NL).gather(1, places_QN)
            sums += torch.cat([*counts, _retrieved(good_QN)])
            bar.update(len(part_QD))
    return _named(["knn", *(f"knn_plain{k}" for k in plain)], world.sum(sums).tolist())


def _retrieved(good_QN: Tensor) -> Tensor:
    """Sums of recall@k, of average precision, and of the queries that have them."""
    recalls = [good_QN[:, :k].any(1).sum().double() for k in RECALL_AT]
    precision_Q = average_precision(good_QN)
    return torch.stack([*recalls, precision_Q.nansum(), (~precision_Q.isnan()).sum().double()])


def _named(names: Sequence[str], sums: list[float]) -> dict[str, float]:
    row: dict[str, float] = {}
    for place, name in enumerate(names):
        top1, top5, images = sums[3 * place : 3 * place + 3]
        row |= {f"{name}_top1": top1 / images}
        if place == 0:
            row |= {f"{name}_top5": top5 / images}
    *recalls, precision, queries = sums[3 * len(names) :]
    queries = max(1.0, queries)
    for k, recall in zip(RECALL_AT, recalls, strict=True):
        row[f"recall_at_{k}"] = recall / queries
    return row | {"retrieval_map": precision / queries}


def _unit_bank(bank_ND: Tensor, device: torch.device) -> Tensor:
    """Rows of length 1 in float64 on the device, which holds nothing else as large."""
    unit_ND = torch.empty(bank_ND.shape, dtype=torch.float64, device=device)
    for start in range(0, len(bank_ND), ROWS):
        rows = slice(start, start + ROWS)
        unit_ND[rows] = _unit(bank_ND[rows].to(device))
    return unit_ND


def _unit(rows_ND: Tensor) -> Tensor:
    return F.normalize(rows_ND.double(), dim=1)


def _ranking(similar_QN: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(similarities, places) of the first `count` of the bank for each query."""
    levels_QN = (similar_QN.clamp(-1, 1) * 2**_LEVELS).round()
    levels_QN, places_QN = levels_QN.sort(dim=1, descending=True, stable=True)
    return levels_QN[:, :count] / 2**_LEVELS, places_QN[:, :count]
