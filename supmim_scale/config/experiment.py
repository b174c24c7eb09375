"""The half of a recipe that may change the result: its digest names the experiment."""

from dataclasses import dataclass
from typing import Literal

from supmim_scale.config.fields import doc, required

Layout = Literal["clean_and_masked", "clean_and_masked_tokens", "masked_only"]
Target = Literal["pixel", "codebook", "vqgan"]
Schedule = Literal["cosine", "rsqrt", "wsd"]
Reader = Literal["webdataset", "tfrecord", "folder", "list"]
Augmentation = Literal["none", "rand_augment", "trivial_augment", "three_augment"]


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
