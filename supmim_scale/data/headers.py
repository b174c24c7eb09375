"""Encoded images without decoding them: kind, size, and whether they are all there."""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SOI, _EOI, _SOS = b"\xff\xd8", b"\xff\xd9", 0xDA
_SIZES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # start-of-frame markers (ITU T.81, table B.1)
_NO_LENGTH = {0x01, *range(0xD0, 0xD8)}
_FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "MPO": "jpg"}


class BadImageError(Exception):
    """Bytes that are no whole image of a kind that is read; says why in a few words."""


@dataclass(frozen=True)
class Header:
    """What an encoded image says of itself; `height` and `width` in pixels.

    `oddity`: a colour space that decoders convert in ways of their own, empty for the usual ones.
    """

    kind: str
    height: int
    width: int
    oddity: str = ""


def read_header(encoded: NDArray[np.uint8]) -> Header:
    """The header of an image that has its end. Raises `BadImageError`.

    JPEGs are walked marker by marker, without a copy; other kinds go to PIL.
    """
    data = memoryview(encoded.data)
    if not data:
        raise BadImageError("zero bytes")
    return _walk(data) if data[:2] == _SOI else _by_pil(bytes(data))


def _walk(data: memoryview) -> Header:
    size, place, channels = None, 2, 3
    try:
        while True:
            if data[place] != 0xFF:
                raise BadImageError(f"no JPEG marker at byte {place}")
            marker = data[place + 1]
            if marker == 0xFF:  # fill byte
                place += 1
                continue
            if marker == _SOS:
                break
            if marker == 0xD9:
                raise BadImageError("JPEG without image data")
            if marker in _SIZES:
                size = (
                    int.from_bytes(data[place + 5 : place + 7], "big"),
                    int.from_bytes(data[place + 7 : place + 9], "big"),
                )
                channels = data[place + 9]
            length = 0 if marker in _NO_LENGTH else (data[place + 2] << 8) + data[place + 3]
            place += 2 + length
    except IndexError:
        raise BadImageError("truncated before its image data") from None
    if size is None or not all(size):
        raise BadImageError("JPEG without a size")
    # Almost always the last two bytes; some files go on after their end.
    if data[-2:] != _EOI and bytes(data).rfind(_EOI, place) < 0:
        raise BadImageError("truncated: no end-of-image marker")
    return Header("jpg", *size, oddity="CMYK" if channels == 4 else "")


def _by_pil(data: bytes) -> Header:
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = _FORMATS.get(image.format or "")
            if kind is None:
                raise BadImageError(f"{image.format}, not one of {', '.join(sorted(_FORMATS))}")
            odd = image.mode if image.mode == "CMYK" or image.mode.startswith(("I", "F")) else ""
            return Header(kind, image.height, image.width, odd)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise BadImageError(f"no image: {data[:8]!r} at its start") from None


def why_undecodable(encoded: NDArray[np.uint8]) -> str:
    """Words for an image that DALI refuses: PIL's where it refuses it too."""
    try:
        with Image.open(io.BytesIO(encoded.tobytes())) as image:
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"undecodable: {error}"
    return "undecodable by DALI"
