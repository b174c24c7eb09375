"""A run's encoder and head as a folder that plain timm opens."""

from pathlib import Path

from supmim_scale import assemble
from supmim_scale.evaluate.subject import open_run
from supmim_scale.models.encoder import save_timm_folder


def export_run(run_dir: Path, weights: Path | None, out: Path) -> None:
    """Write encoder and head as a folder that plain `timm.create_model` opens."""
    subject = open_run(run_dir, weights)
    _, arguments = assemble.encoder_arguments(subject.config)
    data = subject.config.data
    save_timm_folder(
        subject.encoder, arguments, out, mean=data.mean, std=data.std, crop=data.eval_crop
    )
