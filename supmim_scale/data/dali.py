"""The decoding pipeline: the only importer of DALI.

One definition serves training and evaluation, CPU and GPU decoding: encoded bytes, a crop window
and a flip go in, a normalised view comes out. Bytes and windows come from outside, so the
pipeline holds no random state.
"""

from collections.abc import Callable
from typing import Any

import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.pytorch import feed_ndarray
from torch import Tensor

Source = Callable[[], tuple[Any, Any, Any, Any]]


@pipeline_def(exec_dynamic=True)
def view_pipeline(
    source: Source, decoder: str, hw_decoder_load: float, size: int, mean: float, std: float
) -> Any:
    """Views (B, C, size, size) from a source of (encoded, anchors, shapes, flips).

    `decoder`: 'cpu' or 'mixed' (GPU). Anchors and shapes are (height, width) in pixels. EXIF
    orientation is not applied, as in PIL and torchvision.
    """
    encoded, anchors, shapes, flips = fn.external_source(
        source=source,
        num_outputs=4,
        batch=True,
        dtype=[types.UINT8, *[types.INT32] * 3],
        ndim=[1, 1, 1, 0],
    )
    gpu_options: dict[str, Any] = {"hw_decoder_load": hw_decoder_load}
    images = fn.decoders.image_slice(
        encoded,
        anchors,
        shapes,
        device=decoder,
        axes=[0, 1],
        normalized_anchor=False,
        normalized_shape=False,
        output_type=types.RGB,
        adjust_orientation=False,
        **(gpu_options if decoder == "mixed" else {}),
    )
    images = fn.resize(images, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=True)
    return fn.crop_mirror_normalize(
        images,
        mirror=flips,
        dtype=types.FLOAT,
        output_layout="CHW",
        mean=[255 * mean] * 3,
        std=[255 * std] * 3,
    )


class ViewPipeline:
    """A built pipeline; iterating gives (B, C, H, W) float32 tensors on `device`."""

    def __init__(
        self,
        source: Source,
        *,
        batch: int,
        size: int,
        mean: float,
        std: float,
        decoder: str,
        hw_decoder_load: float,
        threads: int,
        prefetch: int,
        device: torch.device,
    ) -> None:
        self._device = device
        self._pipeline = view_pipeline(
            source,
            decoder,
            hw_decoder_load,
            size,
            mean,
            std,
            batch_size=batch,
            num_threads=threads,
            device_id=device.index if decoder == "mixed" else None,
            prefetch_queue_depth=prefetch,
        )
        self._pipeline.build()

    def next(self) -> Tensor:
        """The next batch. Raises `StopIteration` when the source does."""
        (out,) = self._pipeline.run()
        dense = out.as_tensor()
        views_BCHW = torch.empty(dense.shape(), dtype=torch.float32, device=self._home(dense))
        stream = torch.cuda.current_stream() if views_BCHW.is_cuda else None
        feed_ndarray(dense, views_BCHW, cuda_stream=stream)
        return views_BCHW.to(self._device, non_blocking=True)

    def _home(self, dense: Any) -> torch.device:
        return self._device if type(dense).__name__ == "TensorGPU" else torch.device("cpu")
