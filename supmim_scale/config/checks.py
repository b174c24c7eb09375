"""Checks across recipe keys that need neither torch nor the data."""

from supmim_scale.config.schema import RunConfig
from supmim_scale.errors import UserError
from supmim_scale.sizes import VARIANTS


def require_consistent(config: RunConfig) -> None:
    """Raise `UserError` for the first key whose value cannot work."""
    for check in (_require_geometry, _require_mask, _require_schedule):
        check(config)
    engine = config.engine
    if engine.activation_budget is not None and engine.activation_checkpointing != "first_k":
        raise UserError(
            "engine.activation_budget",
            f"{engine.activation_budget:g} with activation_checkpointing "
            f"{engine.activation_checkpointing}",
            "first_k, whose k the budget decides",
            "set engine.activation_checkpointing=first_k or engine.activation_budget=null",
        )
    if config.loss.kind == "none" and not config.mim.weight:
        raise UserError(
            "loss.kind",
            "none with mim.weight 0",
            "at least one loss",
            "set loss.kind=softmax or mim.weight=1",
        )
    if config.log.profile and config.log.profile_steps > config.log.every - 2:
        raise UserError(
            "log.profile_steps",
            f"{config.log.profile_steps} with log.every {config.log.every}",
            "at most log.every - 2, so that they lie between two log lines",
            f"set log.every={config.log.profile_steps + 2} or more",
        )
    if config.log.knn_every and config.loss.kind == "none":
        raise UserError(
            "log.knn_every",
            f"{config.log.knn_every} with loss.kind=none, which reads no labels",
            "0",
            "set log.knn_every=0, and evaluate the run on labelled data",
        )
    if config.log.best in ("knn_top1", "retrieval_map") and not config.log.knn_every:
        raise UserError(
            "log.best",
            f"{config.log.best} without log.knn_every",
            "k-NN evaluations on a schedule",
            "set log.knn_every, or log.best=top1",
        )
    if config.mim.weight and config.mim.target == "vqgan" and config.mim.vqgan is None:
        raise UserError(
            "mim.vqgan",
            "null",
            "the folder of a diffusers VQModel, since mim.target is vqgan",
            "set mim.vqgan=FOLDER, or mim.target=codebook, which needs no weights",
        )


def accumulation_steps(config: RunConfig, world_size: int) -> tuple[int, int]:
    """(micro_batch, accumulation) with micro_batch * world_size * accumulation == global_batch."""
    total, micro = config.optim.global_batch, config.engine.micro_batch
    if micro is None:
        micro = max(1, total // world_size)
    accumulation, rest = divmod(total, micro * world_size)
    if (config.augment.mixup_alpha or config.augment.cutmix_alpha) and micro % 2:
        raise UserError(
            "engine.micro_batch",
            f"{micro} with mixup or cutmix, which mix pairs",
            "an even micro-batch",
            "set engine.micro_batch to an even number, or augment.mixup_alpha=0 "
            "augment.cutmix_alpha=0",
        )
    if rest or not accumulation:
        raise UserError(
            "optim.global_batch",
            f"{total}, which is not a multiple of engine.micro_batch {micro} x {world_size} ranks",
            "micro_batch x ranks x accumulation = global_batch",
            f"set optim.global_batch={micro * world_size * max(1, round(accumulation))} "
            "or change engine.micro_batch",
        )
    return micro, accumulation


def _require_geometry(config: RunConfig) -> None:
    model = config.model
    known = VARIANTS.get(model.name)
    patch = model.patch_size or (known.patch_size if known else None)
    if patch and model.image_size % patch:
        below = model.image_size // patch * patch
        raise UserError(
            "model.image_size",
            f"{model.image_size}, which patches of {patch} do not divide",
            f"a multiple of {patch}",
            f"set model.image_size={below or patch} or {below + patch}",
        )
    width = model.width or (known.width if known else None)
    heads = model.heads or (known.heads if known else None)
    if width and heads and width % heads:
        raise UserError(
            "model.heads", f"{heads} for width {width}", "a divisor of the width", "change one"
        )
    if model.pool == "token" and not model.class_token:
        raise UserError(
            "model.pool",
            "token without a class token",
            "a class token",
            "set model.class_token=true",
        )
    if config.mim.weight and model.decoder_depth < 1:
        raise UserError(
            "model.decoder_depth",
            f"{model.decoder_depth}",
            "at least 1 block",
            "set it to 1 or more",
        )
    if config.data.crop_scale_min > config.data.crop_scale_max:
        raise UserError(
            "data.crop_scale_min",
            f"{config.data.crop_scale_min}",
            f"at most data.crop_scale_max {config.data.crop_scale_max}",
            "change one of them",
        )


def _require_mask(config: RunConfig) -> None:
    mask = config.mask
    top = mask.ratio if mask.ratio_max is None else mask.ratio_max
    if mask.ratio > top:
        raise UserError(
            "mask.ratio",
            f"{mask.ratio} up to {top}",
            "ratio <= ratio_max",
            "change mask.ratio or mask.ratio_max",
        )
    if mask.ratio_mode is not None and mask.ratio_max is None:
        raise UserError(
            "mask.ratio_mode",
            f"{mask.ratio_mode}",
            "a range to draw from",
            "set mask.ratio_max too",
        )


def _require_schedule(config: RunConfig) -> None:
    optim = config.optim
    if (optim.steps is None) == (optim.epochs is None):
        found = "both" if optim.steps else "neither"
        raise UserError(
            "optim.steps, optim.epochs", found, "exactly one", "set one and leave the other null"
        )
    if optim.schedule == "cosine" and optim.cooldown_steps:
        raise UserError(
            "optim.cooldown_steps",
            f"{optim.cooldown_steps} with cosine",
            "0, since cosine has its own decay",
            "set it to 0 or choose wsd or rsqrt",
        )
    if config.checkpoint.before_cooldown and not optim.cooldown_steps:
        raise UserError(
            "checkpoint.before_cooldown",
            "true without a cool-down",
            "optim.cooldown_steps above 0",
            "set optim.schedule=wsd or rsqrt and optim.cooldown_steps",
        )
    if optim.steps is not None:
        require_schedule_fits(config, optim.steps)


def num_steps(config: RunConfig, num_images: int) -> int:
    """Optimizer steps of the run on a training set of this many images."""
    optim = config.optim
    if optim.steps is not None:
        return optim.steps
    assert optim.epochs is not None
    return max(1, round(optim.epochs * num_images / optim.global_batch))


def require_schedule_fits(config: RunConfig, num_steps: int) -> None:
    """Raise `UserError` if warm-up and cool-down are longer than the run."""
    ramps = config.optim.warmup_steps + config.optim.cooldown_steps
    if ramps > num_steps:
        raise UserError(
            "optim.warmup_steps",
            f"warm-up + cool-down of {ramps} steps in a run of {num_steps}",
            f"at most {num_steps}",
            "shorten them, or train longer",
        )
