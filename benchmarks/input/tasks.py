"""What the processes do that dataloader.py starts: one task each, from its job to its row."""

import itertools
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from benchmarks.input.rows import stage_summary
from benchmarks.input.training import Job, Row, set_facts, training_task, wait_for_device
from supmim_scale import randomness
from supmim_scale.config.experiment import AugmentConfig
from supmim_scale.data.augment import draw_augmentations
from supmim_scale.data.dali import DecodeCheck, ViewPipeline, ViewSpec, num_choices
from supmim_scale.data.dataset import Dataset, open_dataset
from supmim_scale.data.headers import read_header
from supmim_scale.data.loader import Share, ViewSettings, training_batches
from supmim_scale.data.order import SampleOrder
from supmim_scale.data.readers import SampleLayout
from supmim_scale.data.views import DRAWS_PER_CROP, random_window
from supmim_scale.models.torchvision_ops import declare_missing_ops

PATTERNS = {"webdataset": "train", "tfrecord": "tfrecord", "folder": "folder", "list": "list.csv"}
WIDTH, HEIGHT, SIZE, CROP_SCALE = 500, 375, 224, (0.08, 1.0)
STAGE_BATCH = 32
NOT_AUGMENTED = AugmentConfig()


def images_per_s(step: Callable[[], int], seconds: float, group: int) -> float:
    """Rate of `step`, which says how many images it made. Batches of `group` workers come in
    groups, so whole groups are measured, after four that fill every queue."""
    for _ in range(4 * group):
        step()
    images, steps = 0, 0
    wait_for_device()
    started = time.perf_counter()
    while steps % group or steps == 0 or time.perf_counter() - started < seconds:
        images += step()
        steps += 1
    wait_for_device()
    return images / (time.perf_counter() - started)


def loader_task(job: Job) -> Row:
    """One run of one variant."""
    make = {"ours": our_batches, "torch": torch_batches, "webdataset": webdataset_batches}
    batches = make[job["loader"]](job)
    rate = images_per_s(lambda: len(next(batches)), job["seconds"], job["cores"])
    held = None  # what the process holds on the GPU beside torch: DALI and its context
    if job.get("decoder") == "mixed":
        free, total = torch.cuda.mem_get_info()
        held = total - free - torch.cuda.memory_reserved()
    affinity = len(os.sched_getaffinity(0))
    return {"images_per_s": rate, "pinned_to": affinity, "gpu_memory_bytes": held}


def our_batches(job: Job) -> Iterator[torch.Tensor]:
    """Views of our loader."""
    dataset = open_dataset(
        Path(job["data"]), PATTERNS[job["reader"]], SampleLayout(reader=job["reader"])
    )
    settings = ViewSettings(
        spec=view_spec(job["decoder"], job["augment"]),
        crop_scale=CROP_SCALE,
        threads=job["cores"],
        readers=job["readers"],
        prefetch=2,
    )
    order = SampleOrder(dataset.sizes, 0, lanes=64)
    share = Share(micro_batch=job["micro_batch"])
    device = device_of(job["decoder"])
    batches = training_batches(dataset, order, settings, share, seed=0, device=device)
    return (batch.images_BCHW for batch in batches)


def device_of(decoder: str) -> torch.device:
    """Where a decoder's views lie; a GPU is one that `wait_for_device` knows."""
    if decoder != "mixed":
        return torch.device("cpu")
    torch.cuda.init()
    return torch.device("cuda", 0)


def view_spec(decoder: str, policy: str = "none") -> ViewSpec:
    """Views as the recipes have them."""
    augment = AugmentConfig(kind=policy)
    return ViewSpec(size=SIZE, mean=0.5, std=0.5, decoder=decoder, augment=augment)


def torch_batches(job: Job) -> Iterator[torch.Tensor]:
    """PyTorch's DataLoader over torchvision's ImageFolder, without a pause between epochs."""
    declare_missing_ops()
    from torchvision.datasets import ImageFolder

    photos = ImageFolder(Path(job["data"]) / "folder", torchvision_view())
    sampler = torch.utils.data.RandomSampler(photos, num_samples=10**9)
    loader = torch.utils.data.DataLoader(
        photos, job["micro_batch"], sampler=sampler, num_workers=job["cores"]
    )
    return (images_BCHW for images_BCHW, _ in loader)


def webdataset_batches(job: Job) -> Iterator[torch.Tensor]:
    """The webdataset library under a DataLoader; every worker draws shards with replacement."""
    import webdataset

    shards = sorted(str(path) for path in Path(job["data"], "train").glob("*.tar"))
    views = torchvision_view()
    dataset = webdataset.WebDataset(shards, resampled=True).shuffle(1000).decode("pil")
    dataset = dataset.to_tuple("jpg", "cls").map_tuple(views, int)
    loader = torch.utils.data.DataLoader(dataset, job["micro_batch"], num_workers=job["cores"])
    return (images_BCHW for images_BCHW, _ in loader)


def torchvision_view() -> Callable[[Any], torch.Tensor]:
    """The same view in torchvision."""
    declare_missing_ops()
    from torchvision import transforms

    half = [0.5] * 3
    return transforms.Compose(  # type: ignore[no-any-return]
        [
            transforms.RandomResizedCrop(SIZE, CROP_SCALE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(half, half),
        ]
    )


def stage_task(job: Job) -> Row:
    """Seconds an image of every stage, interleaved over rounds."""
    steps = stage_steps(job)
    rounds = [
        {name: 1 / images_per_s(step, job["seconds"], 1) for name, step in steps.items()}
        for _ in range(job["repeats"])
    ]
    reason = "views are made on the GPU" if job["decoder"] == "mixed" else "no GPU"
    return stage_summary(rounds, None if "copy" in steps else reason)


def stage_steps(job: Job) -> dict[str, Callable[[], int]]:
    """What to repeat for each stage; each says how many images it handled."""
    dataset = open_dataset(Path(job["data"]), PATTERNS["webdataset"], SampleLayout())
    whose = SampleOrder(dataset.sizes, 0, lanes=64).at(0, len(dataset))
    parts = [slice(i, i + STAGE_BATCH) for i in range(0, len(dataset), STAGE_BATCH)]
    chunks = [(whose[0][part], whose[1][part]) for part in parts]
    turns, pool = itertools.cycle(chunks), ThreadPoolExecutor(job["cores"])

    def read(ids_B: Any, header: bool) -> int:
        for sample in ids_B.tolist():
            encoded = dataset.read(sample)
            if header:
                read_header(encoded)
                dataset.labels_of(sample)
        return len(ids_B)

    def read_step(header: bool) -> int:
        mine = [next(turns)[1] for _ in range(job["cores"])]
        return sum(pool.map(partial(read, header=header), mine))

    def draw_step() -> int:
        epochs_B, ids_B = next(turns)
        return len(view_inputs(epochs_B, ids_B)["flips"])

    steps = {"read": partial(read_step, False), "read_header": partial(read_step, True)}
    return {**steps, "draw": draw_step, **pipeline_steps(job, dataset, chunks)}


def pipeline_steps(
    job: Job, dataset: Dataset, chunks: list[tuple[Any, Any]]
) -> dict[str, Callable[[], int]]:
    """Decoding alone, and the pipelines that it is a part of, from bytes in memory."""
    device = device_of(job["decoder"])
    options = {"batch": STAGE_BATCH, "threads": job["cores"], "device": device}
    encoded = [[dataset.read(i) for i in ids_B.tolist()] for _, ids_B in chunks]
    check = DecodeCheck(decoder=job["decoder"], **options)
    images_in_turn = itertools.cycle(encoded)

    def decode_step() -> int:
        images = next(images_in_turn)
        if check.refused(images, [(0, 0, HEIGHT, WIDTH)] * len(images)):
            raise RuntimeError("a batch that DALI does not decode")
        return len(images)

    def source(spec: ViewSpec) -> Callable[[], tuple[Any, ...]]:
        drawn = [view_inputs(*who, spec.augment) for who in chunks]
        whole = [given | {"encoded": e} for given, e in zip(drawn, encoded, strict=True)]
        turns = itertools.cycle([tuple(given[name] for name in spec.inputs) for given in whole])
        return lambda: next(turns)

    def views(policy: str) -> Callable[[], int]:
        spec = view_spec(job["decoder"], policy)
        pipeline = ViewPipeline(source(spec), spec, prefetch=1, **options)
        return lambda: len(pipeline.next())

    plain = source(view_spec(job["decoder"]))
    windows = window_pipeline(
        lambda: plain()[:3],
        job["decoder"],
        batch_size=STAGE_BATCH,
        num_threads=job["cores"],
        device_id=device.index,
        prefetch_queue_depth=1,
    )
    steps = {
        "decode_whole": decode_step,
        "decode": lambda: len(windows.run()[0]),
        "view": views("none"),
        "rand_augment_view": views("rand_augment"),
    }
    if torch.cuda.is_available() and job["decoder"] == "cpu":
        made_BCHW = torch.rand(STAGE_BATCH, 3, SIZE, SIZE)
        steps["copy"] = lambda: len(made_BCHW.to("cuda", non_blocking=True))
    return steps


@pipeline_def(exec_dynamic=True)
def window_pipeline(source: Callable[[], tuple[Any, ...]], decoder: str) -> Any:
    """The first operator of the training pipeline: the window of every image, decoded."""
    encoded, anchors, shapes = fn.external_source(
        source=source,
        num_outputs=3,
        batch=True,
        ndim=1,
        dtype=[types.UINT8, types.INT32, types.INT32],
    )
    return fn.decoders.image_slice(
        encoded,
        anchors,
        shapes,
        device=decoder,
        axes=[0, 1],
        normalized_anchor=False,
        normalized_shape=False,
        output_type=types.RGB,
        adjust_orientation=False,
    )


def view_inputs(epochs_B: Any, ids_B: Any, augment: AugmentConfig = NOT_AUGMENTED) -> Row:
    """What the loader draws for a batch of the bench set."""
    u_BC = randomness.uniform(randomness.CROP, 0, epochs_B, ids_B, DRAWS_PER_CROP)
    windows = [random_window(HEIGHT, WIDTH, CROP_SCALE, u_C) for u_C in u_BC]
    boxes_B4 = np.array(windows, np.int32)
    flips_B = randomness.uniform(randomness.FLIP, 0, epochs_B, ids_B, 1)[:, 0] < 0.5
    drawn = draw_augmentations(augment, num_choices(augment.kind), SIZE, 0, epochs_B, ids_B)
    boxes = {"anchors": boxes_B4[:, :2].copy(), "shapes": boxes_B4[:, 2:].copy()}
    return {**boxes, "flips": flips_B.astype(np.int32), **drawn}


def memory_task(job: Job) -> Row:
    """Resident bytes after every epoch over a small set."""
    dataset = open_dataset(Path(job["data"]), "train", SampleLayout())
    spec = ViewSpec(size=64, mean=0.5, std=0.5)
    batches = training_batches(
        dataset,
        SampleOrder(dataset.sizes, 0, lanes=64),
        ViewSettings(spec),
        Share(micro_batch=32),
        seed=0,
        device=torch.device("cpu"),
    )
    resident = []
    for _ in range(job["epochs"]):
        for _ in range(len(dataset) // 32):
            next(batches)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident.append(pages * os.sysconf("SC_PAGE_SIZE"))
    second, early = resident[:2][-1], resident[2:10] or resident
    return {
        **set_facts(dataset),
        "resident_bytes": resident,
        "resident_bytes_epoch_2": second,
        "resident_bytes_last": resident[-1],
        "growth_bytes": resident[-1] - second,
        "noise_bytes": max(early) - min(early),  # epochs 3 to 10
    }


TASKS = {
    "loader": loader_task,
    "stage": stage_task,
    "training": training_task,
    "memory": memory_task,
}
