"""CIFAR-10: photographs of ten kinds of things (Krizhevsky 2009)."""

from __future__ import annotations

from largebatch.data.formats import JPEG_ARCHIVE, Form, binary_arrays
from largebatch.data.published import PublishedFiles
from largebatch.data.sets._cifar import MIRRORS, PAGE, Cifar
from largebatch.data.statistics import Statistics

_BATCHES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))


class Cifar10(Cifar):
    name = "cifar10"
    title = "CIFAR-10"
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    statistics = Statistics((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    origin = PublishedFiles(
        folders=("cifar10", "CIFAR10", "cifar-10", "CIFAR-10"),
        forms=(
            Form(
                "binary version", "cifar-10-batches-bin", _BATCHES, ("test_batch.bin",), binary_arrays(label_bytes=1),
                archive="cifar-10-binary.tar.gz",
            ),
            JPEG_ARCHIVE,
        ),
        mirrors=MIRRORS,
        md5={"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
        home="cifar-10-batches-bin",
        page=PAGE,
        pickled=("cifar-10-batches-py", "cifar-10-python.tar.gz"),
    )  # fmt: skip
