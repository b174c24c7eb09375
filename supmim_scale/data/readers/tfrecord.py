"""TFRecord files of tf.train.Example: encoded image and int64 labels, any number an image.

The image's bytes lie in one piece inside its record, so the index holds their place in the file.
Both checksums of every record are verified while indexing.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import crc32c
import pyarrow as pa
from google.protobuf.message import DecodeError
from tfrecord.example_pb2 import Example

from supmim_scale.data.index_table import Defect, Rows
from supmim_scale.data.readers import base
from supmim_scale.data.readers.base import SampleLayout

# Names of TensorFlow's own ImageNet converter (tensorflow/tpu, imagenet_to_gcs.py).
IMAGE_FEATURE = "image/encoded"
LABEL_FEATURE = "image/class/label"
_NAMES = ("*.tfrecord", "*.tfrecords", "*.tfrec", "*.tfrecord-*-of-*", "*-?????-of-?????")
_HEAD, _CRC = struct.Struct("<QI"), struct.Struct("<I")


class TFRecordReader:
    """Files with one of TFRecord's usual endings, or those that a glob matches."""

    def find(self, root: Path, pattern: str, where: str) -> list[Path]:
        """See `Reader`."""
        return base.find_files(root, pattern, where, _NAMES)

    def stamp(self, source: Path) -> dict[str, str]:
        """See `Reader`."""
        return base.file_stamp(source)

    def scan(self, source: Path, name: str, layout: SampleLayout) -> tuple[pa.Table, list[Defect]]:
        """See `Reader`."""
        rows, ids = Rows(name), base.class_ids(layout)
        image, label = layout.image or IMAGE_FEATURE, layout.label or LABEL_FEATURE
        number = -1
        with open(source, "rb") as file:
            for number, (start, record, intact) in enumerate(_records(file, rows)):
                key = f"record {number}"
                if not intact:
                    rows.reject(key, base.DAMAGED, "checksum of the record")
                    continue
                try:
                    features = Example.FromString(record).features.feature
                except DecodeError:
                    rows.reject(key, base.DAMAGED, "no tf.train.Example")
                    continue
                if image not in features:  # asking for it would add it
                    rows.reject(key, f"no feature {image}")
                    continue
                encoded = b"".join(features[image].bytes_list.value[:1])
                if not encoded:
                    rows.reject(key, base.EMPTY)
                    continue
                try:
                    labels = _labels(features, label, ids) if layout.labelled else []
                except ValueError as error:
                    rows.reject(key, base.BAD_LABEL, str(error))
                    continue
                if layout.labelled and not labels:
                    rows.reject(key, base.NO_LABEL)
                    continue
                rows.add(key, start + record.find(encoded), len(encoded), labels)
        if number < 0 and not rows.defects:
            rows.reject("", base.NO_SAMPLE, "no record")
        return rows.as_arrow(), rows.defects


def _labels(features: Any, name: str, ids: dict[str, int] | None) -> list[int]:
    feature = features[name]
    words = [str(value) for value in feature.int64_list.value]
    words += [value.decode(errors="replace") for value in feature.bytes_list.value]
    return [label for word in words for label in base.parse_labels(word, ids)]


def _records(file: BinaryIO, rows: Rows) -> Iterator[tuple[int, bytes, bool]]:
    """(place in the file, record, whether its checksum holds) up to the end or a broken length."""
    while head := file.read(_HEAD.size):
        if len(head) < _HEAD.size:
            rows.reject("", base.DAMAGED, "cut off inside a record's head")
            return
        length, crc = _HEAD.unpack(head)
        if masked_crc(head[:8]) != crc:
            rows.reject("", base.DAMAGED, "checksum of a record's length; the rest is lost")
            return
        start = file.tell()
        record, tail = file.read(length), file.read(_CRC.size)
        if len(record) < length or len(tail) < _CRC.size:
            rows.reject("", base.DAMAGED, "cut off inside a record")
            return
        yield start, record, masked_crc(record) == _CRC.unpack(tail)[0]


def masked_crc(data: bytes) -> int:
    """TFRecord's checksum: CRC32C, rotated and shifted (tensorflow/core/lib/hash/crc32c.h)."""
    crc = crc32c.crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


READER = TFRecordReader()
