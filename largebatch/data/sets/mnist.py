"""MNIST: 70,000 handwritten digits (LeCun et al. 1998)."""

from __future__ import annotations

from largebatch.data.formats import IDX
from largebatch.data.published import PublishedFiles
from largebatch.data.sets._small_images import FromFiles
from largebatch.data.statistics import Statistics


class Mnist(FromFiles):
    name = "mnist"
    title = "MNIST"
    classes = tuple("0123456789")
    image = (1, 28, 28)
    statistics = Statistics((0.1307,), (0.3081,))
    examples = 60_000
    test_examples = 10_000
    origin = PublishedFiles(
        folders=("MNIST", "mnist"),
        forms=(IDX,),
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        md5={
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        home="MNIST/raw",
        page="https://ossci-datasets.s3.amazonaws.com/mnist/",
    )
