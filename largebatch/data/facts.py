"""What is publicly known of the named data sets: classes, shape, pixel statistics, standard augmentation.

Means and standard deviations are those of the training images in [0, 1], as commonly published
(digits: computed from its 1,500 training images; synthetic: the uniform distribution).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from largebatch.data.dataset import Statistics


@dataclass(frozen=True)
class Facts:
    title: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]  # C, H, W
    statistics: Statistics
    augment: str = "none"  # what "auto" means


_DIGITS = tuple("0123456789")
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal
shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""

FACTS = {
    "fashion_mnist": Facts(
        "Fashion-MNIST",
        (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        (1, 28, 28),
        Statistics((0.2860,), (0.3530,)),
    ),
    "mnist": Facts("MNIST", _DIGITS, (1, 28, 28), Statistics((0.1307,), (0.3081,))),
    "cifar10": Facts(
        "CIFAR-10",
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        (3, 32, 32),
        Statistics((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        "crop_flip",
    ),
    "cifar100": Facts(
        "CIFAR-100",
        tuple(_CIFAR100.split()),
        (3, 32, 32),
        Statistics((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        "crop_flip",
    ),
    "digits": Facts("digits", _DIGITS, (1, 8, 8), Statistics((0.3053,), (0.3759,))),
    "digit_pairs": Facts("digit pairs", _DIGITS, (1, 8, 16), Statistics((0.3053,), (0.3759,))),
}

IMAGENET = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def uniform(channels: int) -> Statistics:
    """The statistics of pixels drawn uniformly from [0, 1]."""
    return Statistics((0.5,) * channels, (1 / math.sqrt(12),) * channels)
