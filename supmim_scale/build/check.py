"""Everything that a recipe can get wrong and that needs no device."""

from supmim_scale.build.data import (
    known_bad,
    num_steps,
    open_split,
    require_same_classes,
    sample_order,
)
from supmim_scale.build.model import encoder_geometry
from supmim_scale.config.checks import accumulation_steps, require_schedule_fits
from supmim_scale.config.schema import RunConfig
from supmim_scale.data.dataset import Dataset
from supmim_scale.engine.ds_config import load_ds_config
from supmim_scale.errors import UserError
from supmim_scale.models.targets import require_vqgan_folder


def check_recipe(config: RunConfig, world_size: int) -> tuple[Dataset, Dataset]:
    """The training and the held-out set of a recipe that can be trained on so many ranks.

    Raises `UserError` for the first thing that cannot work: batches, DeepSpeed file, shards. Makes
    missing shard indexes.
    """
    accumulation_steps(config, world_size)
    if config.mim.weight and config.mim.target == "vqgan":
        require_vqgan_folder(config.mim.vqgan)
    if config.engine.kind == "deepspeed":
        load_ds_config(config.engine.ds_config)
    shape = encoder_geometry(config)
    if shape.num_patches != shape.grid**2:
        raise UserError("model.name", "a non-square grid", "square patches", "choose another model")
    require_same_classes(config)
    train_set, val_set = open_split(config, "train"), open_split(config, "val")
    sample_order(config, train_set, world_size)
    known_bad(config, train_set)
    require_schedule_fits(config, num_steps(config, len(train_set)))
    return train_set, val_set
