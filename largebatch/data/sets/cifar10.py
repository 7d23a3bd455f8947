"""CIFAR-10: photographs of ten kinds of things (Krizhevsky 2009)."""

from __future__ import annotations

from largebatch.data.formats import JPEG_ARCHIVE, Form, binary_arrays, python_arrays
from largebatch.data.published import PublishedFiles
from largebatch.data.sets._cifar import MIRRORS, PAGE, Cifar
from largebatch.data.statistics import Statistics

_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_BINARY = tuple(f"{name}.bin" for name in _BATCHES)


class Cifar10(Cifar):
    name = "cifar10"
    title = "CIFAR-10"
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    statistics = Statistics((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    origin = PublishedFiles(
        folders=("cifar10", "CIFAR10", "cifar-10", "CIFAR-10"),
        forms=(
            Form(
                "Python version", "cifar-10-batches-py", _BATCHES, ("test_batch",), python_arrays,
                archive="cifar-10-python.tar.gz",
            ),
            Form(
                "binary version", "cifar-10-batches-bin", _BINARY, ("test_batch.bin",), binary_arrays(label_bytes=1),
                archive="cifar-10-binary.tar.gz",
            ),
            JPEG_ARCHIVE,
        ),
        mirrors=MIRRORS,
        md5={"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
        home="cifar-10-batches-py",
        page=PAGE,
    )  # fmt: skip
