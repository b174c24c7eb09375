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

    kind: Literal["deepspeed", "plain"] = key("deepspeed", "plain: one process, PyTorch only")
    ds_config: str = key("zero3", "a name in ds_configs/ or the path of a DeepSpeed JSON file")
    device: Literal["auto", "cpu"] = key("auto", "auto: GPUs where there are any; cpu: none")
    precision: Literal["auto", "fp32", "bf16"] = key("auto", "auto: bf16 on GPUs, fp32 on a CPU")
    micro_batch: int | None = key(
        None, "images a rank and forward; null: no accumulation", "[1, inf)", "images"
    )
    activation_checkpointing: Policy = key(
        "full",
        "recompute in backward: none; full: every block; every_k: every k-th block; first_k: the "
        "first k blocks of encoder and decoder; selective: "
        "all but matmul and attention outputs",
    )
    checkpoint_every_k: int = key(2, "the k of every_k and first_k", "[1, inf)", "blocks")
    activation_budget: float | None = key(
        None,
        "what a rank's activations may take: first_k recomputes as few blocks as keep below "
        "it, by the planner's trace; null: checkpoint_every_k says how many",
        "(0, inf)",
        "GiB",
    )
    attention: Attention = key(
        "torch",
        "kernel of attention: torch's own choice, flash, cudnn, efficient or math, or fastest: "
        "each is timed on the recipe's shapes when a run starts",
    )
    fp8: Literal["none", "linears", "emulated"] = key(
        "none",
        "matrix products of the blocks in fp8 (torchao): linears on a GPU that has it; emulated: "
        "the same rounding anywhere, slower",
    )
    compile: bool = key(False, "torch.compile each transformer block; the first step takes longer")


@dataclass(frozen=True)
class InputConfig:
    """Where the shards lie and how DALI decodes them; must not change the result."""

    root: str = key("datasets/smoke", "folder that data.train and data.val are under")
    index_dir: str | None = key(None, "folder for shard indexes; null: beside the shards")
    index_workers: int = key(8, "processes that make missing indexes", "[1, inf)", "processes")
    bad_samples: Literal["stop", "skip"] = key(
        "stop",
        "what a sample that cannot be used does: stop the run, or be replaced by another of the "
        "set and listed in the run's quarantine folder",
    )
    bad_rate: float = key(
        1e-4, "share of the set's samples that may be skipped before it stops", "[0, 1]"
    )
    quarantine: str | None = key(
        None, "list of supmim-scale data verify: samples replaced without being tried"
    )
    strict_shards: bool = key(False, "refuse more ranks than shards that are read side by side")
    decoder: Literal["auto", "cpu", "mixed"] = key("auto", "mixed: the GPU decodes; auto: if any")
    hw_decoder_load: float = key(
        0.65, "share of a batch for the hardware JPEG decoder (mixed)", "[0, 1]"
    )
    threads: int = key(2, "DALI worker threads a rank", "[1, inf)", "threads")
    readers: int = key(
        2,
        "threads a rank that fetch bytes; more for storage that answers late",
        "[1, inf)",
        "threads",
    )
    prefetch: int = key(2, "batches decoded ahead", "[1, inf)", "batches")


@dataclass(frozen=True)
class LogConfig:
    """What a run tells; must not change the result."""

    run_dir: str | None = key(None, "run folder; null: runs/RECIPE")
    every: int = key(50, "steps between log lines", "[1, inf)", "steps")
    images_every: int = key(
        0, "steps between reconstruction grids; 0: only the last step", "[0, inf)", "steps"
    )
    eval_every: int = key(0, "steps between evaluations; 0: only at the end", "[0, inf)", "steps")
    eval_batch: int = key(64, "images a rank and evaluation forward", "[1, inf)", "images")
    profile: bool = key(
        False,
        "profile some steps of rank 0 into profile/ (a trace, a table of kernels, what binds); "
        "they are left out of images/s",
    )
    profile_steps: int = key(
        3, "steps profiled after the first log line; at most log.every - 2", "[1, inf)", "steps"
    )
    knn_every: int = key(
        0, "steps between k-NN evaluations, and one after the last; 0: none", "[0, inf)", "steps"
    )
    knn_images: int = key(
        10_000,
        "at most, of training images searched and of held-out ones asked",
        "[1, inf)",
        "images",
    )
    best: Metric | None = key(
        None, "figure by whose highest value weights are kept as weights/best.safetensors"
    )


@dataclass(frozen=True)
class CheckpointConfig:
    """What a run leaves behind and goes on from; must not change the result."""

    every: int = key(
        1000, "steps between checkpoints; 0: only when the run stops", "[0, inf)", "steps"
    )
    keep_last: int = key(2, "checkpoints kept", "[1, inf)", "checkpoints")
    keep_every: int = key(
        0, "steps at whose multiples checkpoints are kept for good; 0: none", "[0, inf)", "steps"
    )
    before_cooldown: bool = key(
        False,
        "keep a checkpoint of the step where the cool-down begins, which longer runs of the same "
        "recipe branch off from (train --branch-from)",
    )
    in_background: bool = key(True, "write files while the next steps go on")
    on_failure: Literal["stop", "continue"] = key(
        "stop", "what a checkpoint that cannot be written does, on a full disk say"
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
    """What is looked after while a run goes on; must not change the result unless it steps in."""

    skipped_in_a_row: int = key(
        5,
        "steps with a non-finite gradient that are skipped one after the other before it stops",
        "[0, inf)",
        "steps",
    )
    spike_sigmas: float = key(
        0.0,
        "a logged loss so many robust deviations above the last ones is a spike; 0: none is",
        "[0, inf)",
    )
    spike_window: int = key(
        50, "logged losses that a spike is measured against", "[1, inf)", "losses"
    )
    on_spike: Literal["log", "stop", "rollback"] = key(
        "log",
        "what a spike does; rollback: the weights of the last checkpoint, and the samples since "
        "then are passed over, as Chowdhery et al. 2022 (arXiv 2204.02311), section 5.1",
    )
    rollbacks: int = key(3, "rollbacks before the run stops", "[0, inf)")
    hang_s: float = key(
        0.0,
        "seconds without a step after which every rank writes its stacks and ends; 0: none",
        "[0, inf)",
        "s",
    )
