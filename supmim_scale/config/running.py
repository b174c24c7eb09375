"""The half of a recipe that says how and where it runs, and must not change the result."""

from dataclasses import dataclass
from typing import Literal

from supmim_scale.config.fields import doc

Attention = Literal["torch", "fastest", "flash", "cudnn", "efficient", "math"]
Policy = Literal["none", "full", "every_k", "first_k", "selective"]
Metric = Literal["top1", "top5", "knn_top1", "retrieval_map"]


@dataclass(frozen=True)
class EngineConfig:
    """How a step is run; must not change the result."""

    kind: Literal["deepspeed", "plain"] = doc("deepspeed", "plain: one process, PyTorch only")
    ds_config: str = doc("zero3", "a name in ds_configs/ or the path of a DeepSpeed JSON file")
    device: Literal["auto", "cpu"] = doc("auto", "auto: GPUs where there are any; cpu: none")
    precision: Literal["auto", "fp32", "bf16"] = doc("auto", "auto: bf16 on GPUs, fp32 on a CPU")
    micro_batch: int | None = doc(None, "images a rank and forward; null: no accumulation")
    activation_checkpointing: Policy = doc(
        "full",
        "recompute in backward: none; full: every block; every_k: every k-th block; first_k: the "
        "first k blocks of encoder and decoder; selective: "
        "all but matmul and attention outputs",
    )
    checkpoint_every_k: int = doc(2, "the k of every_k and first_k")
    activation_budget: float | None = doc(
        None,
        "GiB that a rank's activations may take: first_k recomputes as few blocks as keep below "
        "it, by the planner's trace; null: checkpoint_every_k says how many",
    )
    attention: Attention = doc(
        "torch",
        "kernel of attention: torch's own choice, flash, cudnn, efficient or math, or fastest: "
        "each is timed on the recipe's shapes when a run starts",
    )
    fp8: Literal["none", "linears", "emulated"] = doc(
        "none",
        "matrix products of the blocks in fp8 (torchao): linears on a GPU that has it; emulated: "
        "the same rounding anywhere, slower",
    )
    compile: bool = doc(False, "torch.compile each transformer block; the first step takes longer")


@dataclass(frozen=True)
class InputConfig:
    """Where the shards lie and how DALI decodes them; must not change the result."""

    root: str = doc("datasets/smoke", "folder that data.train and data.val are under")
    index_dir: str | None = doc(None, "folder for shard indexes; null: beside the shards")
    index_workers: int = doc(8, "processes that make missing indexes")
    bad_samples: Literal["stop", "skip"] = doc(
        "stop",
        "what a sample that cannot be used does: stop the run, or be replaced by another of the "
        "set and listed in the run's quarantine folder",
    )
    bad_rate: float = doc(1e-4, "share of the set's samples that may be skipped before it stops")
    quarantine: str | None = doc(
        None, "list of supmim-scale data verify: samples replaced without being tried"
    )
    strict_shards: bool = doc(False, "refuse more ranks than shards that are read side by side")
    decoder: Literal["auto", "cpu", "mixed"] = doc("auto", "mixed: the GPU decodes; auto: if any")
    hw_decoder_load: float = doc(0.65, "share of a batch for the hardware JPEG decoder (mixed)")
    threads: int = doc(2, "DALI worker threads a rank")
    readers: int = doc(2, "threads a rank that fetch bytes; more for storage that answers late")
    prefetch: int = doc(2, "batches decoded ahead")


@dataclass(frozen=True)
class LogConfig:
    """What a run tells; must not change the result."""

    run_dir: str | None = doc(None, "run folder; null: runs/RECIPE")
    every: int = doc(50, "steps between log lines")
    images_every: int = doc(0, "steps between reconstruction grids; 0: only the last step")
    eval_every: int = doc(0, "steps between evaluations; 0: only at the end")
    eval_batch: int = doc(64, "images a rank and evaluation forward")
    profile: bool = doc(
        False,
        "profile some steps of rank 0 into profile/ (a trace, a table of kernels, what binds); "
        "they are left out of images/s",
    )
    profile_steps: int = doc(3, "steps profiled after the first log line; at most log.every - 2")
    knn_every: int = doc(0, "steps between k-NN evaluations, and one after the last; 0: none")
    knn_images: int = doc(10_000, "at most, of training images searched and of held-out ones asked")
    best: Metric | None = doc(
        None, "figure by whose highest value weights are kept as weights/best.safetensors"
    )


@dataclass(frozen=True)
class CheckpointConfig:
    """What a run leaves behind and goes on from; must not change the result."""

    every: int = doc(1000, "steps between checkpoints; 0: only when the run stops")
    keep_last: int = doc(2, "checkpoints kept")
    keep_every: int = doc(0, "steps at whose multiples checkpoints are kept for good; 0: none")
    before_cooldown: bool = doc(
        False,
        "keep a checkpoint of the step where the cool-down begins, which longer runs of the same "
        "recipe branch off from (train --branch-from)",
    )
    in_background: bool = doc(True, "write files while the next steps go on")
    on_failure: Literal["stop", "continue"] = doc(
        "stop", "what a checkpoint that cannot be written does, on a full disk say"
    )
    time_budget_s: float | None = doc(
        None, "seconds after which the run saves and stops with exit code 75; null: none"
    )
    weights_every: int = doc(0, "steps between saved weights; 0: only at the end")


@dataclass(frozen=True)
class WatchConfig:
    """What is looked after while a run goes on; must not change the result unless it steps in."""

    skipped_in_a_row: int = doc(
        5, "steps with a non-finite gradient that are skipped one after the other before it stops"
    )
    spike_sigmas: float = doc(
        0.0, "a logged loss so many robust deviations above the last ones is a spike; 0: none is"
    )
    spike_window: int = doc(50, "logged losses that a spike is measured against")
    on_spike: Literal["log", "stop", "rollback"] = doc(
        "log",
        "what a spike does; rollback: the weights of the last checkpoint, and the samples since "
        "then are passed over, as Chowdhery et al. 2022 (arXiv 2204.02311), section 5.1",
    )
    rollbacks: int = doc(3, "rollbacks before the run stops")
    hang_s: float = doc(
        0.0, "seconds without a step after which every rank writes its stacks and ends; 0: none"
    )
