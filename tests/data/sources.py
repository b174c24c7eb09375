"""Sources of samples for tests, as other tools write them."""

import io
import tarfile

from tfrecord import TFRecordWriter

from supmim_scale.data.dataset import open_dataset
from supmim_scale.data.index import IndexPlace, make_index
from supmim_scale.data.index_table import Table
from supmim_scale.data.readers import SampleLayout


def tar(path, members, format=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=format) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def tfrecord(path, examples):
    writer = TFRecordWriter(str(path))
    for example in examples:
        writer.write(example)
    writer.close()
    return path


def samples(root, pattern="train", **layout):
    """(key, bytes, labels) of every sample, in the index's order."""
    dataset = open_dataset(root, pattern, SampleLayout(**layout))
    return [
        (dataset.defect(i, "").key, dataset.read(i).tobytes(), dataset.labels_of(i).tolist())
        for i in range(len(dataset))
    ]


def scan(path, **layout):
    """(table of one source, what was wrong with it)."""
    place = IndexPlace(path.parent, SampleLayout(**layout), path.parent / "indexes")
    facts = make_index(path, place)
    return Table(facts.index), [(d.key, d.reason) for d in facts.defects]


def folder_tree(root):
    for name, number in (("n01", 3), ("n02", 2)):
        (root / "train" / name).mkdir(parents=True)
        for i in range(number):
            (root / "train" / name / f"{i}.JPEG").write_bytes(f"{name}{i}".encode())
        (root / "train" / name / "notes.txt").write_text("not an image")


def example(image=b"jpeg", labels=(1,), image_key="image/encoded", label_key="image/class/label"):
    return {image_key: (image, "byte"), label_key: (list(labels), "int")}
