"""A procedural data set of real JPEGs: textured shapes over natural-looking noise.

A class is a (hue, texture) pair: hues are learned at once, textures slowly, so that a small model
ends a minute far from chance and far from 100 %. Shape, position, size, rotation, the second
colour and the background carry no information. Every image is a function of (seed, split,
number) alone.
"""

import io
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from supmim_scale import randomness
from supmim_scale.data.shards import write_shard
from supmim_scale.errors import UserError

SHAPES = ("disc", "square", "triangle", "ring")
HUES = ("red", "green", "blue", "yellow")
TEXTURES = ("level stripes", "upright stripes", "checker", "dots")
CLASSES = tuple(f"{hue} {texture}" for hue in HUES for texture in TEXTURES)

_INK = {
    "red": (0.9, 0.1, 0.1),
    "green": (0.1, 0.7, 0.1),
    "blue": (0.1, 0.2, 0.9),
    "yellow": (0.9, 0.8, 0.1),
}

_SPLITS = ("train", "val")
_QUALITY = 90


@dataclass(frozen=True)
class SynthSpec:
    """A data set to make: pixels of an image, images a split, images a shard."""

    width: int = 80
    height: int = 72
    num_train: int = 4096
    num_val: int = 1024
    shard_size: int = 512
    seed: int = 0


def write_synthetic(out: Path, spec: SynthSpec, workers: int) -> dict[str, int]:
    """Write `out`/train and `out`/val shards; returns images a split.

    Whole shards are kept, so that a second call finishes an interrupted one; a call that asks for
    another set in the same folder is refused.
    """
    if min(spec.width, spec.height) < 16 or min(spec.num_train, spec.num_val, spec.shard_size) < 1:
        raise UserError("data synth", f"{spec}", "16 pixels and 1 image or more", "raise it")
    _require_same_set(out, spec)
    jobs = []
    for split, total in zip(_SPLITS, (spec.num_train, spec.num_val), strict=True):
        (out / split).mkdir(parents=True, exist_ok=True)
        for number, start in enumerate(range(0, total, spec.shard_size)):
            path = out / split / f"{split}-{number:06d}.tar"
            if not path.exists():
                jobs.append((path, split, start, min(start + spec.shard_size, total)))
    with ProcessPoolExecutor(workers) as pool:
        list(
            tqdm(
                pool.map(partial(_write, spec), jobs),
                "synth",
                len(jobs),
                unit="shard",
                disable=None,
            )
        )
    (out / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return {"train": spec.num_train, "val": spec.num_val}


def _require_same_set(out: Path, spec: SynthSpec) -> None:
    """Note down what `out` holds. Raises `UserError` if it was begun for another set."""
    note, wanted = out / "synth.json", json.dumps(asdict(spec))
    if note.exists() and note.read_text() != wanted:
        raise UserError(
            str(out), f"a set of {note.read_text()}", wanted, "name another folder or remove it"
        )
    out.mkdir(parents=True, exist_ok=True)
    note.write_text(wanted)


def draw_image(spec: SynthSpec, label: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One (height, width, 3) image of a class."""
    hue, texture = divmod(label, len(TEXTURES))
    y, x = np.mgrid[: spec.height, : spec.width].astype(np.float64)
    side = min(spec.height, spec.width)
    centre = rng.uniform(0.35, 0.65, 2) * (spec.height, spec.width)
    radius = rng.uniform(0.3, 0.5) * side
    dx, dy = (x - centre[1]) / radius, (y - centre[0]) / radius
    inside = _inside(SHAPES[rng.integers(len(SHAPES))], *_rotated(dx, dy, rng.uniform(0, 6.3)))
    ink = np.clip(_INK[HUES[hue]] + rng.normal(0, 0.12, 3), 0, 1)
    paper = np.repeat(rng.uniform(0, 1), 3) + rng.normal(0, 0.05, 3)
    weave = _texture(
        TEXTURES[texture],
        *_rotated(x, y, rng.normal(0, 0.12)),
        wavelength=side / rng.uniform(6, 9),
        phase=rng.uniform(0, 6.3, 2),
    )
    filled = weave[..., None] * ink + (1 - weave[..., None]) * paper
    image = _background(spec, rng)
    image[inside] = 0.85 * filled[inside] + 0.15 * image[inside]
    image += rng.normal(0, 0.04, image.shape)
    return (image.clip(0, 1) * 255).astype(np.uint8)


def _rotated(
    x: NDArray[np.float64], y: NDArray[np.float64], angle: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _write(spec: SynthSpec, job: tuple[Path, str, int, int]) -> int:
    path, split, start, stop = job
    return write_shard(path, _samples(spec, split, start, stop))


def _samples(
    spec: SynthSpec, split: str, start: int, stop: int
) -> Iterator[tuple[str, bytes, str, str]]:
    for number in range(start, stop):
        rng = randomness.generator(randomness.ORDER, spec.seed, _SPLITS.index(split), number)
        label = int(rng.integers(len(CLASSES)))
        buffer = io.BytesIO()
        Image.fromarray(draw_image(spec, label, rng)).save(buffer, "JPEG", quality=_QUALITY)
        yield f"{split}-{number:08d}", buffer.getvalue(), "jpg", str(label)


def _background(spec: SynthSpec, rng: np.random.Generator) -> NDArray[np.float64]:
    """Coloured noise whose spectrum falls as 1/f, as photographs' do, around a random tint."""
    fy = np.fft.fftfreq(spec.height)[:, None]
    fx = np.fft.rfftfreq(spec.width)[None, :]
    falloff = 1 / np.maximum(np.hypot(fy, fx), 1 / max(spec.height, spec.width))
    planes = []
    for tint in rng.uniform(0.35, 0.65) + rng.uniform(-0.1, 0.1, 3):
        noise = np.fft.rfft2(rng.normal(size=(spec.height, spec.width))) * falloff
        plane = np.fft.irfft2(noise, s=(spec.height, spec.width))
        planes.append(tint + 0.12 * plane / plane.std())
    return np.stack(planes, axis=-1)


def _inside(shape: str, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.bool_]:
    radius = np.hypot(u, v)
    if shape == "disc":
        return radius < 0.95
    if shape == "square":
        return np.maximum(abs(u), abs(v)) < 0.85
    if shape == "triangle":
        return (v > -0.55) & (v < 1.1 - 1.75 * abs(u))
    ring: NDArray[np.bool_] = (radius < 1.05) & (radius > 0.5)
    return ring


def _texture(
    name: str,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    wavelength: float,
    phase: NDArray[np.float64],
) -> NDArray[np.float64]:
    """1 where ink is, 0 where paper is."""
    a, b = 2 * np.pi * x / wavelength + phase[0], 2 * np.pi * y / wavelength + phase[1]
    if name == "level stripes":
        ink = np.sin(b) > 0
    elif name == "upright stripes":
        ink = np.sin(a) > 0
    elif name == "checker":
        ink = np.sin(a / 2) * np.sin(b / 2) > 0
    else:
        ink = np.cos(a) + np.cos(b) > 0.5
    return np.where(ink, 1.0, 0.0)
