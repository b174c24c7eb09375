"""The pipelines: the only importer of DALI.

One definition serves training and evaluation, CPU and GPU decoding: encoded bytes, a crop window,
a flip and the draws of the augmentations go in, a normalised view comes out. All of it comes
from outside, so the pipeline holds no random state.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.auto_aug import augmentations, rand_augment, trivial_augment
from nvidia.dali.auto_aug.core import augmentation, select, signed_bin
from nvidia.dali.plugin.pytorch import feed_ndarray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from supmim_scale.config.experiment import AugmentConfig
from supmim_scale.data.augment import MAGNITUDES, drawn_names, num_levels

Source = Callable[[], tuple[Any, ...]]

_GREY_LEVEL = 128  # fills what a shear, shift or rotation uncovers, as DALI's own policies do
_PLAIN = {
    "encoded": (types.UINT8, 1),
    "anchors": (types.INT32, 1),
    "shapes": (types.INT32, 1),
    "flips": (types.INT32, 0),
}
_DRAWN = {
    "ops": (types.INT32, 1),
    "magnitudes": (types.INT32, 1),
    "signs": (types.INT32, 1),
    "sigmas": (types.FLOAT, 0),
    "jitters": (types.FLOAT, 1),
    "erase_anchors": (types.FLOAT, 1),
    "erase_shapes": (types.FLOAT, 1),
}


@augmentation
def _greyscale(data: Any, _: Any) -> Any:
    return fn.saturation(data, saturation=0.0)


@augmentation(mag_range=(128, 128), param_device="auto")
def _solarize(data: Any, threshold: Any) -> Any:
    return augmentations.solarize.op(data, threshold)


@augmentation
def _blur(data: Any, _: Any, sigma: Any) -> Any:
    return fn.gaussian_blur(data, sigma=sigma)


def _choices(kind: str, size: int) -> list[Any]:
    """The operations of a policy."""
    if kind == "three_augment":
        return [_greyscale, _solarize, _blur]
    shift = round(size * 100 / 224)  # DALI's default, 100 pixels of 224, at this size
    if kind == "rand_augment":
        return list(rand_augment.get_rand_augment_suite(max_translate_abs=shift))
    return list(trivial_augment.get_trivial_augment_wide_suite())


def num_choices(kind: str) -> int:
    """Number of operations of a policy, 0 for none."""
    return len(_choices(kind, 224)) if kind != "none" else 0


@dataclass(frozen=True)
class ViewSpec:
    """What the pipeline makes: views of `size` pixels, normalised by `mean` and `std`.

    `decoder` is 'cpu' or 'mixed' (the GPU decodes, and its JPEG hardware takes the share
    `hw_decoder_load`). `cubic` resizes by bicubic interpolation instead of bilinear.
    """

    size: int
    mean: float
    std: float
    decoder: str = "cpu"
    hw_decoder_load: float = 0.65
    augment: AugmentConfig = AugmentConfig()
    cubic: bool = False

    @property
    def inputs(self) -> dict[str, tuple[Any, int]]:
        """(type, dimensions) of the inputs by name, in the source's order."""
        return _PLAIN | {name: _DRAWN[name] for name in drawn_names(self.augment)}


@pipeline_def(exec_dynamic=True, enable_conditionals=True)
def view_pipeline(source: Source, spec: ViewSpec) -> Any:
    """Views (B, C, size, size) from a source of `spec.inputs`.

    Anchors and shapes are (height, width) in pixels. EXIF orientation is not applied, as in PIL
    and torchvision.
    """
    nodes = fn.external_source(
        source=source,
        num_outputs=len(spec.inputs),
        batch=True,
        dtype=[kind for kind, _ in spec.inputs.values()],
        ndim=[dimensions for _, dimensions in spec.inputs.values()],
    )
    given = {name: nodes[place] for place, name in enumerate(spec.inputs)}
    gpu_options: dict[str, Any] = {"hw_decoder_load": spec.hw_decoder_load}
    images = _decoded(
        given["encoded"],
        given["anchors"],
        given["shapes"],
        decoder=spec.decoder,
        **(gpu_options if spec.decoder == "mixed" else {}),
    )
    images = fn.resize(
        images,
        size=[spec.size, spec.size],
        interp_type=types.INTERP_CUBIC if spec.cubic else types.INTERP_LINEAR,
        antialias=True,
    )
    images = _augmented(images, given, spec)
    views = fn.crop_mirror_normalize(
        images,
        mirror=given["flips"],
        dtype=types.FLOAT,
        output_layout="CHW",
        mean=[255 * spec.mean] * 3,
        std=[255 * spec.std] * 3,
    )
    if "erase_shapes" in given:  # to 0, which is the mean
        where = {"anchor": given["erase_anchors"], "shape": given["erase_shapes"]}
        views = fn.erase(views, axis_names="HW", fill_value=0.0, **where)
    return views


def _augmented(images: Any, given: dict[str, Any], spec: ViewSpec) -> Any:
    """The policy's operations, one level after the other, then colour jitter."""
    settings = spec.augment
    choices = _choices(settings.kind, spec.size) if settings.kind != "none" else []
    options: dict[str, Any] = {"num_magnitude_bins": MAGNITUDES, "fill_value": _GREY_LEVEL}
    if "sigmas" in given:
        options["sigma"] = given["sigmas"]
    for level in range(num_levels(settings)):
        strength = 0
        if "signs" in given:
            strength = signed_bin(given["magnitudes"][level], random_sign=given["signs"][level])
        images = select(
            choices, given["ops"][level], data=images, magnitude_bin=strength, **options
        )
    if "jitters" in given:
        names = ("brightness", "contrast", "saturation")
        factors = {name: given["jitters"][i] for i, name in enumerate(names)}
        images = fn.color_twist(images, **factors)
    return images


class ViewPipeline:
    """A built pipeline; `next` gives (B, C, H, W) float32 tensors on `device`."""

    def __init__(
        self,
        source: Source,
        spec: ViewSpec,
        *,
        batch: int,
        threads: int,
        prefetch: int,
        device: torch.device,
    ) -> None:
        self._device = device
        make = partial(
            view_pipeline,
            source,
            spec,
            batch_size=batch,
            num_threads=threads,
            device_id=device.index if spec.decoder == "mixed" else None,
            prefetch_queue_depth=prefetch,
        )
        self._pipeline = _built(make)

    def next(self) -> Tensor:
        """The next batch. Raises `StopIteration` when the source does, `RuntimeError` if an
        image cannot be decoded; the pipeline is of no use after either."""
        (out,) = self._pipeline.run()
        dense = out.as_tensor()
        if type(dense).__name__ != "TensorGPU":
            # Taken over without a copy: the dynamic executor's outputs belong to who holds them.
            return from_dlpack(dense).to(self._device)
        views_BCHW = torch.empty(dense.shape(), dtype=torch.float32, device=self._device)
        feed_ndarray(dense, views_BCHW, cuda_stream=torch.cuda.current_stream())
        return views_BCHW


@pipeline_def(exec_dynamic=True)
def decode_pipeline(decoder: str) -> Any:
    """Windows of images from the inputs `encoded`, `anchors`, `shapes`."""
    names = ("encoded", "anchors", "shapes")
    given = [
        fn.external_source(name=name, batch=True, dtype=_PLAIN[name][0], ndim=_PLAIN[name][1])
        for name in names
    ]
    return _decoded(*given, decoder=decoder)


def _decoded(encoded: Any, anchors: Any, shapes: Any, *, decoder: str, **options: Any) -> Any:
    return fn.decoders.image_slice(
        encoded,
        anchors,
        shapes,
        device=decoder,
        axes=[0, 1],
        normalized_anchor=False,
        normalized_shape=False,
        output_type=types.RGB,
        adjust_orientation=False,
        **options,
    )


class DecodeCheck:
    """Says which images the training decoder refuses in the windows that are asked of it."""

    def __init__(self, *, batch: int, threads: int, decoder: str, device: torch.device) -> None:
        self._make = partial(
            decode_pipeline,
            decoder,
            batch_size=batch,
            num_threads=threads,
            device_id=device.index if decoder == "mixed" else None,
            prefetch_queue_depth=1,
        )
        self._pipeline = _built(self._make)

    def refused(
        self, images: Sequence[NDArray[np.uint8]], windows: Sequence[Sequence[int]]
    ) -> list[int]:
        """Places of those among at most `batch` images whose window does not decode.

        `windows`: (top, left, height, width) of each. A failure names no image: halves are tried.
        """
        if not images or self._decodes(images, windows):
            return []
        if len(images) == 1:
            return [0]
        half = len(images) // 2
        later = self.refused(images[half:], windows[half:])
        return self.refused(images[:half], windows[:half]) + [half + place for place in later]

    def _decodes(
        self, images: Sequence[NDArray[np.uint8]], windows: Sequence[Sequence[int]]
    ) -> bool:
        boxes_B4 = np.array(windows, dtype=np.int32)
        try:
            self._pipeline.feed_input("encoded", list(images))
            self._pipeline.feed_input("anchors", boxes_B4[:, :2].copy())
            self._pipeline.feed_input("shapes", boxes_B4[:, 2:].copy())
            self._pipeline.run()
        except RuntimeError:
            self._pipeline = _built(self._make)  # DALI does not promise that a failed one goes on
            return False
        return True


def _built(make: Callable[[], Any]) -> Any:
    """A pipeline, built. DALI's own policies use names that it calls deprecated, loudly whatever
    the filters say (DALI 2.4); nothing else is kept back."""
    with warnings.catch_warnings(record=True) as caught:
        pipeline = make()
        pipeline.build()
    for warning in caught:
        if not issubclass(warning.category, DeprecationWarning):
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    return pipeline
