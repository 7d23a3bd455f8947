"""The names of policies of augmentation, as :mod:`largebatch.data.policies` makes them."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from largebatch.recipes.config.mistakes import shown

OF_TIMM = "timm/"
RAND_AUGMENT = re.compile(r"rand_augment(?:-n([1-9]\d?))?(?:-m([12]?\d|30))?")  # torchvision has 31 strengths
AUTO_AUGMENT = re.compile(r"auto_augment(?:-(cifar10|svhn))?")
_KNOWN = (
    RAND_AUGMENT,
    AUTO_AUGMENT,
    re.compile("trivial_augment_wide"),
    re.compile(r"timm/(3a|original|originalr|v0|v0r)(-mstd\d+(\.\d+)?)?"),
    re.compile(r"timm/rand(-(m\d+|n[1-9]\d?|p[01](\.\d+)?|mstd\d+(\.\d+)?|mmax\d+|inc[01]|t(weights|3aw?)))*"),
)


def a_policy(written: str) -> str:
    if not any(pattern.fullmatch(written) for pattern in _KNOWN):
        raise ValueError(
            f"data.policy = {shown(written)} is not known; valid: rand_augment (rand_augment-n2-m9), "
            "trivial_augment_wide, auto_augment, and timm's, such as timm/rand-m9-mstd0.5-inc1 and timm/3a"
        )
    return written


PolicyName = Annotated[str, AfterValidator(a_policy)]
