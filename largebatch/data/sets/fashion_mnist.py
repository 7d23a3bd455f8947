"""Fashion-MNIST: 70,000 pictures of clothes (Xiao et al. 2017, arXiv:1708.07747)."""

from __future__ import annotations

from pathlib import Path

from largebatch.data.formats import IDX
from largebatch.data.published import Package, PublishedFiles
from largebatch.data.sets._small_images import FromFiles
from largebatch.data.statistics import Statistics


class FashionMnist(FromFiles):
    name = "fashion_mnist"
    title = "Fashion-MNIST"
    classes = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip
    image = (1, 28, 28)
    statistics = Statistics((0.2860,), (0.3530,))
    examples = 60_000
    test_examples = 10_000
    origin = PublishedFiles(
        folders=("FashionMNIST", "fashion_mnist", "fashion-mnist", "Fashion-MNIST"),
        forms=(IDX,),
        mirrors=(
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        md5={
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        home="FashionMNIST/raw",
        page="https://github.com/zalandoresearch/fashion-mnist",
        package=Package("dataset-fashion-mnist", Path("/usr/share/datasets/fashion-mnist")),
    )
