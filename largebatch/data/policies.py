"""Policies of augmentation: timm's and torchvision's own, of an image that is already cut out and resized.

    rand_augment-n2-m9           Cubuk 2019, arXiv:1909.13719: N operations of strength M, 0 to 30; torchvision's
    trivial_augment_wide         Müller, Hutter 2021, arXiv:2103.10158: one operation of any strength; torchvision's
    auto_augment                 Cubuk 2018, arXiv:1805.09501, found on ImageNet; -cifar10, -svhn; torchvision's
    timm/rand-m9-mstd0.5-inc1    timm's RandAugment, in timm's words, in which papers state it
    timm/3a                      one of grey, solarize and blur: DeiT III, Touvron 2022, arXiv:2204.07118
    timm/original, timm/v0       timm's AutoAugment; originalr, v0r

They draw from the global random states of the process. So those are set for each example by its place in the run
(:mod:`largebatch.data.draws`), and what is drawn is the same in any world, with any number of workers and after a
resume. Nothing of what they do is written again here, but for an image posterized to 0 bits. What they fill in is
timm's mean colour or torchvision's black; torchvision's interpolate bilinearly, as its own training does, and timm's at
random (bilinear, bicubic), as its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from largebatch.data import draws
from largebatch.data.statistics import IMAGENET
from largebatch.recipes.config.policies import AUTO_AUGMENT, OF_TIMM, RAND_AUGMENT

TRANSLATE = 0.45  # of the side, at most: timm's create_transform
Policy = Callable[[Image.Image], Image.Image]


def policed(images: Tensor, name: str, keys: np.ndarray) -> Tensor:
    """uint8 ``images`` (m, H, W, C) on the CPU, changed in place: each by what the policy draws with its key."""
    policy = of_name(name, images.shape[2], images.shape[3])
    alone = get_worker_info() is not None  # a process whose states are nobody else's
    for image, key in zip(images.numpy(), keys.tolist(), strict=True):
        if alone:
            draws.seed_with(key)
            image[:] = _changed(image, policy)
        else:
            with draws.seeded(key):
                image[:] = _changed(image, policy)
    return images


def _changed(image: np.ndarray, policy: Policy) -> np.ndarray:
    """(H, W, 3), or (H, W, 1) of grey."""
    return np.asarray(policy(Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image))).reshape(image.shape)


@functools.lru_cache(maxsize=8)
def of_name(name: str, side: int, channels: int) -> Policy:
    """``side`` in pixels says how far timm's translations go."""
    return _of_timm(name.removeprefix(OF_TIMM), side, channels) if name.startswith(OF_TIMM) else _of_torchvision(name)


def _of_timm(words: str, side: int, channels: int) -> Policy:
    from timm.data import auto_augment

    mean = tuple(round(255 * level) for level in IMAGENET.mean)
    keys: dict[str, Any] = {
        "translate_const": int(TRANSLATE * side),
        "img_mean": mean if channels == 3 else round(sum(mean) / 3),
    }
    if words.startswith("rand"):
        policy = auto_augment.rand_augment_transform(words, keys)
        operations = policy.ops
    else:
        policy = auto_augment.auto_augment_transform(words, keys)
        operations = [operation for together in policy.policy for operation in together]
    for operation in operations:  # made for this policy: timm's own table of functions stays as it is
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = _posterized
    return policy


def _posterized(image: Image.Image, bits: int, **how: Any) -> Image.Image:
    """timm's, and black where no bits are left.

    timm's PosterizeIncreasing asks for 0 bits from magnitude 10 on. Older Pillow's mask was 0 there; the present one
    raises ValueError.
    """
    from timm.data import auto_augment

    if bits <= 0:
        return Image.new(image.mode, image.size)
    return auto_augment.posterize(image, bits, **how)


def _of_torchvision(name: str) -> Policy:
    from torchvision.transforms import v2

    bilinear: dict[str, Any] = {"interpolation": v2.InterpolationMode.BILINEAR}
    if (found := RAND_AUGMENT.fullmatch(name)) is not None:
        count, magnitude = found.groups()
        return v2.RandAugment(int(count or 2), int(magnitude or 9), **bilinear)
    if (found := AUTO_AUGMENT.fullmatch(name)) is not None:
        return v2.AutoAugment(v2.AutoAugmentPolicy(found[1] or "imagenet"), **bilinear)
    assert name == "trivial_augment_wide"
    return v2.TrivialAugmentWide(**bilinear)
