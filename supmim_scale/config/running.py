"""The half of a recipe that says how and where it runs, and must not change the result."""

from dataclasses import dataclass
from typing import Literal

from supmim_scale.config.fields import key

Attention = Literal["torch", "fastest", "flash", "cudnn", "efficient", "math"]
Policy = Literal["none", "full", "every_k", "first_k", "selective"]
Metric = Literal["top1", "top5", "knn_top1", "retrieval_map"]


@dataclass(frozen=True)
class EngineConfig:
    """How a step is run; must not change the result."""

    kind: Literal["deepspeed", "plain"] = key(
        "deepspeed", "deepspeed, or plain: one process of PyTorch only"
    )
    ds_config: str = key("zero3", "a name in ds_configs/ or the path of a DeepSpeed JSON file")
    device: Literal["auto", "cpu"] = key("auto", "auto: GPUs where there are any; cpu: none")
    precision: Literal["auto", "fp32", "bf16"] = key("auto", "auto: bf16 on GPUs, fp32 on a CPU")
    micro_batch: int | None = key(
        None, "images per rank and forward pass; null: no accumulation", "[1, inf)", "images"
    )
    activation_checkpointing: Policy = key(
        "full",
        "what backward recomputes: none; full: every block; every_k: every k-th block; first_k: "
        "the first k blocks of encoder and decoder; selective: all but matmul and attention "
        "outputs",
    )
    checkpoint_every_k: int = key(2, "the k of every_k and first_k", "[1, inf)", "blocks")
    activation_budget: float | None = key(
        None,
        "memory that a rank's activations may use: first_k recomputes as few blocks as stay "
        "below it, by the planner's trace; null: checkpoint_every_k gives the number",
        "(0, inf)",
        "GiB",
    )
    attention: Attention = key(
        "torch",
        "attention kernel: torch (its own choice), flash, cudnn, efficient, math, or fastest: "
        "all are timed on the recipe's shapes when a run starts",
    )
    fp8: Literal["none", "linears", "emulated"] = key(
        "none",
        "fp8 matrix products in the blocks (torchao): linears: on a GPU with fp8; emulated: "
        "the same rounding anywhere, slower",
    )
    compile: bool = key(False, "torch.compile each transformer block; the first step takes longer")


@dataclass(frozen=True)
class InputConfig:
    """Where the data is and how DALI decodes it; must not change the result."""

    root: str = key("datasets/smoke", "folder that contains data.train and data.val")
    index_dir: str | None = key(None, "folder for shard indexes; null: next to the shards")
    index_workers: int = key(8, "processes that make missing indexes", "[1, inf)", "processes")
    bad_samples: Literal["stop", "skip"] = key(
        "stop",
        "what to do about a sample that cannot be used: stop the run, or skip it: replace it by "
        "another of the set and list it in the run's quarantine folder",
    )
    bad_rate: float = key(
        1e-4, "share of the set's samples that may be skipped before the run stops", "[0, 1]"
    )
    quarantine: str | None = key(
        None,
        "list written by supmim-scale data verify; its samples are replaced without being read",
    )
    strict_shards: bool = key(False, "refuse more ranks than shards that are read at the same time")
    decoder: Literal["auto", "cpu", "mixed"] = key(
        "auto", "mixed: on the GPU; auto: mixed if there is one"
    )
    hw_decoder_load: float = key(
        0.65, "share of a batch that the hardware JPEG decoder gets (mixed)", "[0, 1]"
    )
    threads: int = key(2, "DALI worker threads per rank", "[1, inf)", "threads")
    readers: int = key(
        2,
        "threads per rank that fetch bytes; raise it for storage with high latency",
        "[1, inf)",
        "threads",
    )
    prefetch: int = key(2, "batches decoded ahead", "[1, inf)", "batches")


@dataclass(frozen=True)
class LogConfig:
    """What a run logs; must not change the result."""

    run_dir: str | None = key(None, "run folder; null: runs/RECIPE")
    every: int = key(50, "steps between log lines", "[1, inf)", "steps")
    images_every: int = key(
        0, "steps between reconstruction grids; 0: only the last step", "[0, inf)", "steps"
    )
    eval_every: int = key(0, "steps between evaluations; 0: only at the end", "[0, inf)", "steps")
    eval_batch: int = key(
        64, "images per rank and forward pass in evaluation", "[1, inf)", "images"
    )
    profile: bool = key(
        False,
        "profile some steps of rank 0 into profile/ (a trace, a table of kernels, the "
        "bottleneck); they are excluded from images/s",
    )
    profile_steps: int = key(
        3, "steps profiled after the first log line; at most log.every - 2", "[1, inf)", "steps"
    )
    knn_every: int = key(
        0,
        "steps between k-NN evaluations, with one after the last step; 0: none",
        "[0, inf)",
        "steps",
    )
    knn_images: int = key(
        10_000,
        "k-NN uses at most this many training images as neighbours and held-out images as queries",
        "[1, inf)",
        "images",
    )
    best: Metric | None = key(
        None, "metric by which the best weights are kept as weights/best.safetensors; null: none"
    )


@dataclass(frozen=True)
class CheckpointConfig:
    """What a run saves and resumes from; must not change the result."""

    every: int = key(
        1000, "steps between checkpoints; 0: only when the run stops", "[0, inf)", "steps"
    )
    keep_last: int = key(2, "checkpoints kept", "[1, inf)", "checkpoints")
    keep_every: int = key(
        0,
        "checkpoints at multiples of this many steps are never removed; 0: none",
        "[0, inf)",
        "steps",
    )
    before_cooldown: bool = key(
        False,
        "keep a checkpoint from the step where the cool-down begins; longer runs of the same "
        "recipe branch off from it (train --branch-from)",
    )
    in_background: bool = key(True, "write files while training continues")
    on_failure: Literal["stop", "continue"] = key(
        "stop",
        "what to do if a checkpoint cannot be written (a full disk): stop, or warn and continue",
    )
    time_budget_s: float | None = key(
        None,
        "seconds after which the run saves and stops with exit code 75; null: none",
        "(0, inf)",
        "s",
    )
    weights_every: int = key(
        0, "steps between saved weights; 0: only at the end", "[0, inf)", "steps"
    )


@dataclass(frozen=True)
class WatchConfig:
    """Health checks while a run trains; they change the result only when they act (rollback)."""

    skipped_in_a_row: int = key(
        5,
        "consecutive steps with a non-finite gradient that are skipped before the run stops",
        "[0, inf)",
        "steps",
    )
    spike_sigmas: float = key(
        0.0,
        "a logged loss this many robust deviations above the last ones is a spike; 0: off",
        "[0, inf)",
    )
    spike_window: int = key(
        50, "number of logged losses that a spike is measured against", "[1, inf)", "losses"
    )
    on_spike: Literal["log", "stop", "rollback"] = key(
        "log",
        "what to do about a spike; rollback: go back to the last checkpoint and skip the samples "
        "seen since, as Chowdhery et al. 2022 (arXiv 2204.02311), section 5.1",
    )
    rollbacks: int = key(3, "rollbacks before the run stops", "[0, inf)")
    hang_s: float = key(
        0.0,
        "seconds without a step after which every rank writes its stack traces and exits; 0: off",
        "[0, inf)",
        "s",
    )
