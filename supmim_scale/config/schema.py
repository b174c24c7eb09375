"""The recipe as frozen dataclasses: every key, its meaning, unit, default and allowed values.

A recipe has two halves. `model`, `loss`, `mim`, `mask`, `optim`, `data`, `augment` and `seed` may
change the result and are hashed into the digest that names the experiment; `engine`, `input`,
`log`, `checkpoint` and `watch` say how and where it runs and must not change it (beyond rounding).
"""

from dataclasses import dataclass, field
from typing import Any, Literal

IDENTITY_SECTIONS = ("model", "loss", "mim", "mask", "optim", "data", "augment", "seed")

Layout = Literal["clean_and_masked", "clean_and_masked_tokens", "masked_only"]
Target = Literal["pixel", "codebook", "vqgan"]
Attention = Literal["torch", "fastest", "flash", "cudnn", "efficient", "math"]
Policy = Literal["none", "full", "every_k", "first_k", "selective"]
Schedule = Literal["cosine", "rsqrt", "wsd"]
Reader = Literal["webdataset", "tfrecord", "folder", "list"]
Metric = Literal["top1", "top5", "knn_top1", "retrieval_map"]
Augmentation = Literal["none", "rand_augment", "trivial_augment", "three_augment"]


def doc(default: Any, text: str) -> Any:
    """A dataclass field with its default and its meaning."""
    return field(default=default, metadata={"doc": text})


def required(text: str) -> Any:
    """A dataclass field that every recipe must set."""
    return field(metadata={"doc": text})


@dataclass(frozen=True)
class About:
    """The recipe's lab note; not part of the run."""

    paper: str = required("paper or table the settings come from, and which are our choice")
    command: str = required("command that starts it")
    hardware: str = required("hardware it is meant for")
    expected: str = required("expected result with its source, or 'not run yet'")


@dataclass(frozen=True)
class ModelConfig:
    """The encoder (timm) and the shallow decoder on top of it."""

    name: str = required("a name of our variants table, or any timm VisionTransformer name")
    num_classes: int = required("outputs of the classification head")
    image_size: int = doc(224, "side of the square input, pixels; a multiple of the patch size")
    patch_size: int | None = doc(None, "pixels; null: the named model's")
    width: int | None = doc(None, "encoder width; null: the named model's")
    depth: int | None = doc(None, "encoder blocks; null: the named model's")
    heads: int | None = doc(None, "encoder attention heads; null: the named model's")
    pool: Literal["avg", "token", "map"] = doc(
        "avg", "average of patch tokens, class token, or attention pooling (timm global_pool)"
    )
    class_token: bool = doc(False, "prepend a class token; without one the token count stays N")
    init_from: str | None = doc(
        None,
        "weights that a new run starts from: a safetensors file of a run or of timm, a folder "
        "with model.safetensors, or timm/NAME, which timm fetches (MAE, DINOv2, AugReg, BEiT); "
        "null: random",
    )
    drop_path: float = doc(0.0, "stochastic depth rate of the last block, linear from 0")
    drop_path_kept: bool = doc(
        False,
        "compute a block's branches on the kept samples alone, a fixed number of each micro-batch "
        "(DINOv2's), instead of on all with some multiplied by 0 (timm's)",
    )
    decoder_depth: int = doc(2, "decoder blocks (2 of encoder width: ours, the paper is silent)")
    decoder_width: int | None = doc(None, "decoder width; null: the encoder's")
    decoder_heads: int | None = doc(None, "decoder attention heads; null: width / 64, at least 1")


@dataclass(frozen=True)
class LossConfig:
    """The classification loss."""

    kind: Literal["softmax", "sigmoid", "none"] = doc(
        "softmax",
        "softmax cross-entropy (one label an image), sigmoid cross-entropy summed over classes "
        "(any number of labels; head bias starts at -log(num_classes), as in big_vision), or none: "
        "labels are not read and masked image modelling trains alone",
    )
    label_smoothing: float = doc(0.0, "share of the target spread evenly over the classes")


@dataclass(frozen=True)
class MimConfig:
    """The masked-image-modelling term."""

    weight: float = doc(1.0, "factor of the MIM loss; 0 builds the supervised baseline")
    layout: Layout = doc(
        "clean_and_masked",
        "clean_and_masked: clean pass for the classes, second pass over the visible patches; "
        "clean_and_masked_tokens: second pass keeps all positions with mask tokens; "
        "masked_only: one pass with mask tokens serves both losses",
    )
    target: Target = doc(
        "codebook",
        "pixel: per-patch normalised pixels, squared error; codebook: nearest of k-means patch "
        "centres, cross-entropy; vqgan: codes of a frozen VQGAN, cross-entropy",
    )
    codebook_size: int = doc(1024, "k-means centres of the codebook target")
    codebook_images: int = doc(2048, "training images the codebook is fitted on")
    vqgan: str | None = doc(None, "folder of a diffusers VQModel with one code a patch")


@dataclass(frozen=True)
class MaskConfig:
    """Which patches are hidden; drawn from (seed, epoch, sample id) alone."""

    kind: Literal["random", "block"] = doc("random", "uniform, or rectangles as in BEiT")
    ratio: float = doc(0.5, "share of masked patches; the lower end when ratio_max is set")
    ratio_max: float | None = doc(
        None, "upper end of the range the ratio is drawn from, a sample at a time; null: fixed"
    )
    ratio_mode: float | None = doc(
        None, "mode of a truncated Gaussian, std 0.25 (MAGE: 0.55 in 0.5-1.0); null: uniform"
    )


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, its schedule and the batch it sees."""

    global_batch: int = required("images of one optimizer step over all ranks and micro-batches")
    lr: float = required("peak learning rate")
    steps: int | None = doc(None, "optimizer steps; set this or epochs")
    epochs: float | None = doc(None, "passes over the training set; set this or steps")
    schedule: Schedule = doc(
        "cosine",
        "cosine to zero; rsqrt: inverse square root with linear cool-down; wsd: constant with "
        "linear cool-down",
    )
    warmup_steps: int = doc(0, "linear warm-up, steps")
    cooldown_steps: int = doc(0, "linear cool-down to zero at the end, steps (rsqrt, wsd)")
    rsqrt_timescale: int = doc(10_000, "steps t0 in sqrt(t0 / max(step, t0)) (rsqrt)")
    weight_decay: float = doc(0.05, "decoupled; biases, norms, tokens and positions take none")
    head_weight_decay: float | None = doc(None, "of the classification head; null: weight_decay")
    beta1: float = doc(0.9, "Adam's first moment")
    beta2: float = doc(0.95, "Adam's second moment")
    eps: float = doc(1e-8, "Adam's epsilon")
    clip_grad_norm: float = doc(1.0, "global gradient norm is clipped to this; 0: no clipping")
    layer_decay: float = doc(1.0, "learning-rate factor from block to block towards the input")
    ema_decay: float = doc(0.0, "decay of the weights' moving average a step; 0: no average")


@dataclass(frozen=True)
class DataConfig:
    """What is read and how a training view is cut from it."""

    name: str = required("name of the data set; it enters the digest, its location does not")
    reader: Reader = doc(
        "webdataset",
        "how samples lie: webdataset tars, tfrecord files of tf.train.Example, folder: a folder a "
        "class, list: CSV or Parquet of paths and labels",
    )
    train: str = doc("train", "folder, file or glob of the training set under input.root")
    val: str = doc("val", "folder, file or glob of the held-out set under input.root")
    image_field: str | None = doc(
        None, "TFRecord feature (image/encoded) or list column (path) of images; null: those"
    )
    label_field: str | None = doc(
        None,
        "TFRecord feature (image/class/label), list column (label) or tar extension (cls) of "
        "labels; null: those",
    )
    classes: str | None = doc(
        None,
        "class names in the order of their ids: timm/LIST (timm/imagenet22k has 21,841, "
        "timm/imagenet21k_miil_w21 10,450) or a text file; null: labels are ids, folders sorted",
    )
    shuffle_shards: int = doc(
        64,
        "shards that a global batch is drawn from side by side; a rank reads whole shards where "
        "it is no smaller than the number of ranks (twice that with mixup or cutmix)",
    )
    crop_scale_min: float = doc(0.08, "smallest area of a random-resized crop, share of the image")
    crop_scale_max: float = doc(1.0, "largest area of a random-resized crop")
    flip: bool = doc(True, "mirror half of the training images")
    eval_crop: float = doc(0.875, "centre crop of the held-out images, share of the shorter side")
    mean: float = doc(0.5, "subtracted from pixels in [0, 1]")
    std: float = doc(0.5, "divides pixels after the mean is subtracted")


@dataclass(frozen=True)
class AugmentConfig:
    """What is done to a training view's pixels; drawn from (seed, epoch, sample id) alone."""

    kind: Augmentation = doc(
        "none",
        "rand_augment, trivial_augment (wide), or three_augment: greyscale, solarise or blur",
    )
    num_ops: int = doc(2, "operations a view (rand_augment)")
    magnitude: float = doc(0.3, "share of an operation's range (rand_augment); 9 of 30 is 0.3")
    magnitude_std: float = doc(0.0, "standard deviation of the magnitude (rand_augment)")
    color_jitter: float = doc(0.0, "brightness, contrast and saturation vary by up to this share")
    erase_prob: float = doc(0.0, "share of views with a random rectangle erased to the mean")
    mixup_alpha: float = doc(0.0, "Beta parameter of mixup; 0: off")
    cutmix_alpha: float = doc(0.0, "Beta parameter of CutMix; 0: off")
    cutmix_share: float = doc(0.5, "share of images that take CutMix where mixup is on too")


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


@dataclass(frozen=True)
class RunConfig:
    """A whole recipe."""

    about: About
    model: ModelConfig
    optim: OptimConfig
    data: DataConfig
    loss: LossConfig = LossConfig()
    mim: MimConfig = MimConfig()
    mask: MaskConfig = MaskConfig()
    augment: AugmentConfig = AugmentConfig()
    seed: int = doc(0, "of initialisation, order, crops, augmentation, masks and drop path")
    engine: EngineConfig = EngineConfig()
    input: InputConfig = InputConfig()
    log: LogConfig = LogConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    watch: WatchConfig = WatchConfig()
