"""The half of a recipe that may change the result: its digest names the experiment."""

from dataclasses import dataclass
from typing import Literal

from supmim_scale.config.fields import key, required

Layout = Literal["clean_and_masked", "clean_and_masked_tokens", "masked_only"]
Target = Literal["pixel", "codebook", "vqgan"]
Schedule = Literal["cosine", "rsqrt", "wsd"]
Reader = Literal["webdataset", "tfrecord", "folder", "list"]
Augmentation = Literal["none", "rand_augment", "trivial_augment", "three_augment"]


@dataclass(frozen=True)
class ModelConfig:
    """The encoder (timm) and the shallow decoder on top of it."""

    name: str = required("a name from supmim_scale/sizes.py, or any timm VisionTransformer name")
    num_classes: int = required("outputs of the classification head", "[1, inf)", "classes")
    image_size: int = key(
        224, "side of the square input; must be a multiple of the patch size", "[1, inf)", "pixels"
    )
    patch_size: int | None = key(None, "side of a patch; null: the model's", "[1, inf)", "pixels")
    width: int | None = key(None, "encoder width; null: the named model's", "[1, inf)")
    depth: int | None = key(None, "encoder blocks; null: the named model's", "[1, inf)", "blocks")
    heads: int | None = key(None, "encoder attention heads; null: the named model's", "[1, inf)")
    pool: Literal["avg", "token", "map"] = key(
        "avg",
        "avg: mean of the patch tokens; token: the class token; map: attention pooling (timm)",
    )
    class_token: bool = key(False, "prepend a class token to the patch tokens")
    init_from: str | None = key(
        None,
        "weights that a new run starts from: a safetensors file of a run or of timm, a folder "
        "with model.safetensors, or timm/NAME, which timm fetches (MAE, DINOv2, AugReg, BEiT); "
        "null: randomly initialised",
    )
    drop_path: float = key(
        0.0, "stochastic depth rate of the last block; it rises linearly from 0", "[0, 1)"
    )
    drop_path_kept: bool = key(
        False,
        "compute a block's branches only on the kept samples, a fixed number of each micro-batch "
        "(as DINOv2), instead of on all samples with some multiplied by 0 (as timm)",
    )
    decoder_depth: int = key(
        2,
        "decoder blocks (2 of the encoder's width is our choice; the paper gives none)",
        "[0, inf)",
        "blocks",
    )
    decoder_width: int | None = key(None, "decoder width; null: the encoder's", "[1, inf)")
    decoder_heads: int | None = key(
        None, "decoder attention heads; null: width / 64, at least 1", "[1, inf)"
    )


@dataclass(frozen=True)
class LossConfig:
    """The classification loss."""

    kind: Literal["softmax", "sigmoid", "none"] = key(
        "softmax",
        "softmax cross-entropy (one label per image), sigmoid cross-entropy summed over classes "
        "(any number of labels; head bias starts at -log(num_classes), as in big_vision), or none: "
        "labels are not read and only masked image modelling trains",
    )
    label_smoothing: float = key(
        0.0, "label smoothing: share of the target spread evenly over the classes", "[0, 1]"
    )


@dataclass(frozen=True)
class MimConfig:
    """The masked-image-modelling term."""

    weight: float = key(1.0, "weight of the MIM loss; 0 builds the supervised baseline", "[0, inf)")
    layout: Layout = key(
        "clean_and_masked",
        "clean_and_masked: a clean pass for the classes, a second pass over the visible patches; "
        "clean_and_masked_tokens: the second pass keeps all positions, with mask tokens; "
        "masked_only: one pass with mask tokens serves both losses",
    )
    target: Target = key(
        "codebook",
        "pixel: per-patch normalised pixels, squared error; codebook: nearest of k-means patch "
        "centres, cross-entropy; vqgan: codes of a frozen VQGAN, cross-entropy",
    )
    codebook_size: int = key(1024, "k-means centres of the codebook target", "[2, inf)", "centres")
    codebook_images: int = key(
        2048, "training images that the codebook is fitted on", "[1, inf)", "images"
    )
    vqgan: str | None = key(None, "folder of a diffusers VQModel with one code per patch")


@dataclass(frozen=True)
class MaskConfig:
    """Which patches are hidden; drawn only from (seed, epoch, sample id)."""

    kind: Literal["random", "block"] = key(
        "random", "random: uniformly drawn patches; block: rectangles as in BEiT"
    )
    ratio: float = key(
        0.5, "share of masked patches; the lower end of the range if ratio_max is set", "(0, 1)"
    )
    ratio_max: float | None = key(
        None,
        "upper end of the range each sample's ratio is drawn from; null: a fixed ratio",
        "(0, 1]",
    )
    ratio_mode: float | None = key(
        None,
        "mode of a truncated Gaussian, std 0.25 (MAGE: 0.55 in 0.5-1.0); null: uniform",
        "[0, 1]",
    )


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, its schedule and the batch it sees."""

    global_batch: int = required(
        "images per optimizer step over all ranks and micro-batches", "[1, inf)", "images"
    )
    lr: float = required("peak learning rate", "(0, inf)")
    steps: int | None = key(None, "optimizer steps; set this or epochs", "[1, inf)", "steps")
    epochs: float | None = key(
        None, "passes over the training set; set this or steps", "(0, inf)", "epochs"
    )
    schedule: Schedule = key(
        "cosine",
        "cosine to zero; rsqrt: inverse square root with linear cool-down; wsd: constant with "
        "linear cool-down",
    )
    warmup_steps: int = key(0, "length of the linear warm-up", "[0, inf)", "steps")
    cooldown_steps: int = key(
        0, "length of the linear cool-down to zero at the end (rsqrt, wsd)", "[0, inf)", "steps"
    )
    rsqrt_timescale: int = key(
        10_000, "t0 of sqrt(t0 / max(step, t0)) (rsqrt)", "[1, inf)", "steps"
    )
    weight_decay: float = key(
        0.05,
        "decoupled weight decay; none on biases, norms, tokens and position embeddings",
        "[0, inf)",
    )
    head_weight_decay: float | None = key(
        None, "weight decay of the classification head; null: weight_decay", "[0, inf)"
    )
    beta1: float = key(0.9, "decay rate of Adam's first moment", "[0, 1)")
    beta2: float = key(0.95, "decay rate of Adam's second moment", "[0, 1)")
    eps: float = key(1e-8, "Adam's epsilon", "(0, inf)")
    clip_grad_norm: float = key(
        1.0, "global gradient norm is clipped to this; 0: no clipping", "[0, inf)"
    )
    layer_decay: float = key(
        1.0,
        "layer-wise decay: learning-rate factor from block to block towards the input",
        "(0, 1]",
    )
    ema_decay: float = key(
        0.0, "decay per step of the weights' moving average (EMA); 0: no average", "[0, 1)"
    )


@dataclass(frozen=True)
class DataConfig:
    """What is read, and how training views are cropped from it."""

    name: str | None = key(
        None,
        "name of the data set, which enters the digest (its location does not); null: the name "
        "of the folder input.root",
    )
    reader: Reader = key(
        "webdataset",
        "how samples are stored: webdataset: tar files; tfrecord: files of tf.train.Example; "
        "folder: one folder per class; list: CSV or Parquet of paths and labels",
    )
    train: str = key("train", "folder, file or glob of the training set under input.root")
    val: str = key("val", "folder, file or glob of the held-out set under input.root")
    image_field: str | None = key(
        None, "TFRecord feature or list column of images; null: image/encoded or path"
    )
    label_field: str | None = key(
        None,
        "TFRecord feature, list column or tar extension of labels; null: image/class/label, "
        "label or cls",
    )
    classes: str | None = key(
        None,
        "class names in the order of their ids: timm/LIST (timm/imagenet22k has 21,841, "
        "timm/imagenet21k_miil_w21 10,450) or a text file; null: labels are ids, or sorted folders",
    )
    shuffle_shards: int = key(
        64,
        "shards that a global batch is drawn from at the same time; if there are at least as many "
        "as ranks (twice as many with mixup or cutmix), no shard is read by two ranks",
        "[1, inf)",
        "shards",
    )
    crop_scale_min: float = key(
        0.08, "smallest area of a random resized crop, as a share of the image", "(0, 1]"
    )
    crop_scale_max: float = key(
        1.0, "largest area of a random resized crop, as a share of the image", "(0, 1]"
    )
    flip: bool = key(True, "flip half of the training images horizontally")
    eval_crop: float = key(
        0.875, "centre crop of held-out images, as a share of the shorter side", "(0, 1]"
    )
    mean: float = key(0.5, "mean subtracted from pixels in [0, 1]", "[0, 1]")
    std: float = key(0.5, "standard deviation that pixels are divided by", "(0, inf)")


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training views; drawn only from (seed, epoch, sample id)."""

    kind: Augmentation = key(
        "none",
        "none, rand_augment, trivial_augment (wide), or three_augment: greyscale, solarise or blur",
    )
    num_ops: int = key(2, "operations per view (rand_augment)", "[1, inf)", "operations")
    magnitude: float = key(
        0.3, "magnitude as a share of an operation's range (rand_augment); 9 of 30 is 0.3", "[0, 1]"
    )
    magnitude_std: float = key(
        0.0, "standard deviation of the magnitude (rand_augment)", "[0, inf)"
    )
    color_jitter: float = key(
        0.0, "colour jitter: brightness, contrast and saturation vary by up to this share", "[0, 1]"
    )
    erase_prob: float = key(
        0.0, "random erasing: share of views with a random rectangle set to the mean", "[0, 1]"
    )
    mixup_alpha: float = key(0.0, "parameter of mixup's Beta distribution; 0: off", "[0, inf)")
    cutmix_alpha: float = key(0.0, "parameter of CutMix's Beta distribution; 0: off", "[0, inf)")
    cutmix_share: float = key(0.5, "share of images that get CutMix if mixup is on too", "[0, 1]")
