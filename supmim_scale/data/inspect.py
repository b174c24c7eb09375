"""What a set holds, and whether its batches mix classes: figures and a picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from supmim_scale import randomness
from supmim_scale.data.dataset import Dataset
from supmim_scale.data.headers import BadImageError, read_header
from supmim_scale.data.index_table import Table
from supmim_scale.data.order import SampleOrder
from supmim_scale.files.progress import progress

_SAMPLED = 2000  # images whose headers are read
_BATCHES = 20
_FEW_CLASSES = 0.8  # of those that a batch drawn from the whole set would hold
_SORTED = 0.5  # of those that a shard drawn from the whole set would hold


@dataclass(frozen=True)
class Stats:
    """Figures of a set; arrays for its picture."""

    facts: dict[str, Any]
    label_counts: NDArray[np.int64]
    heights: NDArray[np.int64]
    widths: NDArray[np.int64]
    sizes: NDArray[np.int64]
    batch_classes: NDArray[np.int64]
    expected_classes: float

    @property
    def warnings(self) -> list[str]:
        """What a user should know before training."""
        found = []
        if self.facts["sorted_shards"] > 0:
            found.append(
                f"{self.facts['sorted_shards']} of {self.facts['shards']} shards are sorted by "
                "class: pack the set, or raise data.shuffle_shards"
            )
        if self.facts["class_mixing"] is not None and self.facts["class_mixing"] < _FEW_CLASSES:
            found.append(
                f"a batch holds {self.facts['classes_per_batch']:.1f} classes where one drawn from "
                f"the whole set holds {self.expected_classes:.1f}: pack the set, or raise "
                "data.shuffle_shards"
            )
        return found


def inspect(dataset: Dataset, order: SampleOrder, global_batch: int, num_classes: int) -> Stats:
    """Counts from the index, sizes from the headers of a sample of images, and the mixing of
    classes in the first batches of the order."""
    counts, labels, sorted_shards = _count_labels(dataset, num_classes)
    heights, widths, sizes = _sampled_headers(dataset)
    shares = counts / max(1, counts.sum())
    expected = _expected_classes(shares, global_batch)
    batch_classes = np.array(
        [_classes_of(dataset, order, i, global_batch) for i in range(_BATCHES)], dtype=np.int64
    )
    labelled = dataset.labels_per_image > 0
    facts = {
        "samples": len(dataset),
        "left_out": len(dataset.defects),
        "shards": len(dataset.shards),
        "samples_per_shard_median": float(np.median(dataset.sizes)),
        "indexed_bytes": sum(facts.num_bytes for facts in dataset.tables),
        "labels_per_image_mean": labels / max(1, len(dataset)),
        "labels_per_image_max": dataset.labels_per_image,
        "classes_with_images": int((counts > 0).sum()),
        "classes": num_classes,
        "labels_beyond_the_classes": int(labels - counts.sum()),
        "images_of_smallest_class": int(counts[counts > 0].min()) if counts.any() else 0,
        "images_of_largest_class": int(counts.max()) if counts.any() else 0,
        "headers_read": len(heights),
        "height_median": float(np.median(heights)) if len(heights) else None,
        "width_median": float(np.median(widths)) if len(widths) else None,
        "bytes_per_image_mean": float(sizes.mean()) if len(sizes) else None,
        "sorted_shards": sorted_shards,
        "global_batch": global_batch,
        "shards_side_by_side": order.lanes,
        "classes_per_batch": float(batch_classes.mean()) if labelled else None,
        "classes_per_batch_expected": expected if labelled else None,
        "class_mixing": float(batch_classes.mean() / expected) if labelled else None,
    }
    return Stats(facts, counts, heights, widths, sizes, batch_classes, expected)


def _count_labels(dataset: Dataset, num_classes: int) -> tuple[NDArray[np.int64], int, int]:
    """(images of every class, labels in all, shards sorted by class)."""
    counts = np.zeros(num_classes, dtype=np.int64)
    distinct, drawn, labels = [], [], 0
    with progress("labels", len(dataset.tables), "file") as bar:
        for facts in dataset.tables:
            flat = Table(facts.index).labels_flat
            labels += len(flat)
            flat = flat[flat < num_classes]
            counts += np.bincount(flat, minlength=num_classes)
            distinct.append(len(np.unique(flat)))
            drawn.append(len(flat))
            bar.update()
    shares = counts / max(1, counts.sum())
    is_sorted = [
        n > 1 and d < _SORTED * _expected_classes(shares, n)
        for d, n in zip(distinct, drawn, strict=True)
    ]
    return counts, labels, sum(is_sorted) if len(is_sorted) > 1 else 0


def _expected_classes(shares: NDArray[np.float64], drawn: int) -> float:
    """Distinct classes among `drawn` samples of the whole set."""
    return float((1 - (1 - shares) ** drawn).sum())


def _classes_of(dataset: Dataset, order: SampleOrder, step: int, global_batch: int) -> int:
    """Distinct classes of a step's global batch."""
    _, ids = order.at(step * global_batch, global_batch)
    labels = [dataset.table_labels(int(sample)) for sample in ids]
    return len(np.unique(np.concatenate(labels))) if labels else 0


def _sampled_headers(dataset: Dataset) -> tuple[NDArray[np.int64], ...]:
    """Heights, widths and bytes of images drawn from the set."""
    rng = randomness.generator(randomness.ORDER, 0)
    ids = rng.choice(len(dataset), min(_SAMPLED, len(dataset)), replace=False)
    rows = []
    with progress("headers", len(ids), "image") as bar:
        for sample in np.sort(ids):
            bar.update()
            try:
                encoded = dataset.read(int(sample))
                header = read_header(encoded)
                rows.append((header.height, header.width, len(encoded)))
            except BadImageError:
                continue  # verify's business
    table = np.array(rows, dtype=np.int64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]


def plot_inspection(stats: Stats, path: Path, title: str) -> None:
    """Label histogram, image sizes, bytes, and classes a batch."""
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    figure.suptitle(title)
    labels, sides, sizes, mixing = figure.subplots(2, 2).flat
    ranked = np.sort(stats.label_counts)[::-1]
    labels.plot(np.arange(1, len(ranked) + 1), np.maximum(ranked, 0.5), color="#0072b2")
    labels.set(
        xscale="log", yscale="log", xlabel="class, by rank", ylabel="images", title="images a class"
    )
    sides.plot(stats.widths, stats.heights, ".", alpha=0.3, markersize=4, color="#d55e00")
    sides.set(
        xlabel="width, pixels",
        ylabel="height, pixels",
        xlim=(0, None),
        ylim=(0, None),
        title=f"sizes of {len(stats.widths)} images",
    )
    sizes.hist(stats.sizes / 1024, bins=40, color="#009e73")
    sizes.set(xlabel="KiB an image", ylabel="images", title="encoded size")
    mixing.plot(
        np.arange(1, len(stats.batch_classes) + 1),
        stats.batch_classes,
        "o",
        color="#0072b2",
        label="as the recipe orders them",
    )
    mixing.axhline(stats.expected_classes, color="#999999", label="drawn from the whole set")
    top = 1.1 * max(1.0, stats.expected_classes, *stats.batch_classes)
    mixing.set(
        xlabel="step",
        ylabel="classes",
        ylim=(0, top),
        title=f"classes in a batch of {stats.facts['global_batch']}",
    )
    mixing.legend()
    figure.savefig(path, dpi=120)
