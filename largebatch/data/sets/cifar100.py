"""CIFAR-100: photographs of a hundred kinds of things (Krizhevsky 2009)."""

from __future__ import annotations

from largebatch.data.formats import JPEG_ARCHIVE, Form, binary_arrays
from largebatch.data.published import PublishedFiles
from largebatch.data.sets._cifar import MIRRORS, PAGE, Cifar
from largebatch.data.statistics import Statistics

_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal
shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


class Cifar100(Cifar):
    name = "cifar100"
    title = "CIFAR-100"
    classes = tuple(_CLASSES.split())
    statistics = Statistics((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    origin = PublishedFiles(
        folders=("cifar100", "CIFAR100", "cifar-100", "CIFAR-100"),
        forms=(
            Form(
                "binary version", "cifar-100-binary", ("train.bin",), ("test.bin",), binary_arrays(label_bytes=2),
                archive="cifar-100-binary.tar.gz",
            ),
            JPEG_ARCHIVE,
        ),
        mirrors=MIRRORS,
        md5={"cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8"},
        home="cifar-100-binary",
        page=PAGE,
        pickled=("cifar-100-python", "cifar-100-python.tar.gz"),
    )  # fmt: skip
