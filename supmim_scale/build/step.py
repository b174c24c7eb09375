"""The inputs of a step of the joint model."""

from typing import Any

from supmim_scale.config.schema import RunConfig
from supmim_scale.data.loader import Batch
from supmim_scale.data.mixing import draw_mix, mixes
from supmim_scale.models.losses import class_targets
from supmim_scale.models.masking import Masks, MaskSpec, draw_masks
from supmim_scale.models.targets import PatchTarget


def step_arguments(
    config: RunConfig, batch: Batch, target: PatchTarget | None, masks: MaskSpec
) -> tuple[tuple[Any, ...], Masks | None]:
    """Arguments of `JointModel.forward` for a micro-batch, on the device of its images, and its
    masks; `target` None: those of the supervised baseline."""
    targets_BK = class_targets(
        batch.labels_BL, config.model.num_classes, config.loss.kind, config.loss.label_smoothing
    )
    images_BCHW, who = batch.images_BCHW, (batch.epochs_B, batch.ids_B)
    device = images_BCHW.device
    if mixes(config.augment):
        mix = draw_mix(config.augment, images_BCHW.shape[-1], config.seed, *who, device)
        images_BCHW, targets_BK = mix.images(images_BCHW), mix.targets(targets_BK)
    if target is None:
        return (images_BCHW, targets_BK), None
    drawn = draw_masks(masks, config.seed, *who).to(device)
    return (images_BCHW, targets_BK, drawn, target(images_BCHW)), drawn
