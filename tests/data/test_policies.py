"""Policies: the peers' own, drawn for each example by its place in the run."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from packs import packed
from PIL import Image
from scipy.stats import ks_2samp
from timm.data import auto_augment
from timm.data.auto_augment import auto_augment_transform, rand_augment_transform
from torchvision.transforms import v2

from largebatch.data import build, draws
from largebatch.data.packs.by_workers import PixelsByWorkers
from largebatch.data.policies import of_name, policed
from largebatch.data.resident import ResidentSplit
from largebatch.data.workers import WorkerSplit
from largebatch.errors import UserError
from largebatch.plan.batch import resolve
from largebatch.recipes import config
from tests.data.conftest import pixels
from tests.data.test_resident import PLAIN, global_batches, plan_of

BILINEAR = v2.InterpolationMode.BILINEAR
TIMM = {"translate_const": int(0.45 * 32), "img_mean": (124, 116, 104)}
PEERS = {
    "timm/rand-m7-mstd0.5-inc1": lambda: rand_augment_transform("rand-m7-mstd0.5-inc1", dict(TIMM)),
    "timm/3a": lambda: auto_augment_transform("3a", dict(TIMM)),
    "timm/original-mstd0.5": lambda: auto_augment_transform("original-mstd0.5", dict(TIMM)),
    "rand_augment": lambda: v2.RandAugment(2, 9, interpolation=BILINEAR),
    "rand_augment-n3-m15": lambda: v2.RandAugment(3, 15, interpolation=BILINEAR),
    "trivial_augment_wide": lambda: v2.TrivialAugmentWide(interpolation=BILINEAR),
    "auto_augment-cifar10": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, interpolation=BILINEAR),
}


@pytest.mark.parametrize("name", PEERS)
def test_an_image_is_what_the_peer_makes_of_it_with_its_key(name):
    images, keys, peer = torch.from_numpy(pixels(4, 32, 3)), np.array([5, 11, 2**62, 3]), PEERS[name]()
    before = draws.states()
    found = policed(images.clone(), name, keys)
    assert not draws.states().differing(before), "the run's own random states stay"
    for image, key, changed in zip(images, keys.tolist(), found, strict=True):
        with draws.seeded(key):
            wanted = np.asarray(peer(Image.fromarray(image.numpy())))
        assert np.array_equal(changed.numpy(), wanted)


@pytest.mark.parametrize("channels", [3, 1])
def test_an_image_of_no_bits_is_black(channels):
    """timm's rising posterize at magnitude 10; every pixel is what is left of it under a mask of so many high bits."""
    policy = of_name("timm/rand-m10-inc1", 8, channels)
    [operation] = [operation for operation in policy.ops if operation.name == "PosterizeIncreasing"]
    operation.prob, levels = 1.0, pixels(1, 8, channels, seed=4)[0]
    image = Image.fromarray(levels if channels == 3 else levels.squeeze(2))
    for magnitude, bits in [(10, 0), (9, 1), (5, 2), (0, 4)]:
        operation.magnitude = magnitude
        wanted = np.asarray(image) & (256 - 2 ** (8 - bits))
        assert np.array_equal(np.asarray(operation(image)), wanted)
    assert auto_augment.NAME_TO_OP["PosterizeIncreasing"] is auto_augment.posterize, "timm's own is left alone"


@pytest.mark.parametrize("name", ["timm/rand-m9-mstd0.5-inc1", "timm/rand-m20-inc1-mmax20"])
def test_every_draw_of_the_papers_policies_makes_an_image(name):
    """One in 700 images is posterized to 0 bits by the first; to fewer than none by some of the second."""
    image, many = pixels(1, 8, 3, seed=2), 4000
    keys = draws.keys_of(0, np.arange(many), np.zeros(many, np.int64))
    changed = policed(torch.from_numpy(np.repeat(image, many, axis=0)), name, keys)
    assert (changed == 0).flatten(1).all(1).any()


@pytest.mark.parametrize("name", ["timm/rand-m7-mstd0.5-inc1", "trivial_augment_wide"])
def test_keys_of_places_draw_what_the_peer_draws_in_a_row(name):
    """The mean level of one image, changed again and again: two samples of one distribution."""
    image, many = pixels(1, 16, 3, seed=2), 500
    image[0, :8] //= 3
    keys = draws.keys_of(0, np.arange(many), np.zeros(many, np.int64))
    ours = policed(torch.from_numpy(np.repeat(image, many, axis=0)), name, keys).double().mean((1, 2, 3))
    side = {"translate_const": int(0.45 * 16), "img_mean": TIMM["img_mean"]}
    peer = rand_augment_transform(name[5:], side) if name.startswith("timm") else PEERS[name]()
    with draws.seeded(1):
        theirs = [np.asarray(peer(Image.fromarray(image[0]))).mean() for _ in range(many)]
    assert ks_2samp(ours.numpy(), theirs).pvalue > 1e-4
    assert len(set(ours.tolist())) > many // 4


@pytest.mark.parametrize("name", ["timm/rand-m9-mstd0.5-inc1", "timm/3a", "rand_augment", "auto_augment"])
def test_grey_images(name):
    grey = torch.from_numpy(pixels(6, 28, 1))
    found = policed(grey.clone(), name, np.arange(6))
    assert found.shape == grey.shape
    assert not torch.equal(found, grey)


def resident() -> ResidentSplit:
    return ResidentSplit(pixels(20, 8, 3), np.arange(20), PLAIN, "crop_flip", "trivial_augment_wide")


@pytest.mark.parametrize(("world", "micro"), [(1, 2), (2, 3), (3, 1)])
def test_an_example_looks_the_same_in_any_world_and_after_a_resume(world, micro):
    whole = global_batches(resident(), plan_of(20, 12, micro=12))
    parts = global_batches(resident(), plan_of(20, 12, world, micro), first=2)
    for (images, labels), (other_images, other_labels) in zip(whole[2:], parts, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def images_of(root, **keys):
    found = build("folder", root=str(root), image_size=16, policy="timm/rand-m9-mstd0.5-inc1", **{"workers": 0} | keys)
    plans = [
        resolve(dataset_size=len(found.train), global_batch_size=8, world_size=w, micro_batch_size=m, steps=3, seed=3)
        for w, m in ((1, 8), (2, 2))
    ]
    return found, [global_batches(found.train, plan) for plan in plans]


def test_a_folder_looks_the_same_in_any_world(image_root):
    found, (whole, parts) = images_of(image_root)
    assert isinstance(found.train, WorkerSplit)
    for (images, _), (others, _) in zip(whole, parts, strict=True):
        assert torch.equal(images, others)
    plain = build("folder", root=str(image_root), image_size=16, workers=0)
    plan = resolve(dataset_size=25, global_batch_size=8, micro_batch_size=8, steps=3, seed=3)
    assert not torch.equal(global_batches(plain.train, plan)[0][0], whole[0][0])


@pytest.mark.worlds
def test_a_folder_looks_the_same_with_any_number_of_workers(image_root):
    (_, (alone, _)), (_, (two, _)) = (images_of(image_root, workers=workers) for workers in (0, 2))
    for (images, _), (others, _) in zip(alone, two, strict=True):
        assert torch.equal(images, others)


@pytest.mark.worlds  # packing starts processes
def test_packed_pixels_are_changed_by_workers(image_root, tmp_path):
    packed(image_root, tmp_path / "pack", size=24)
    found, (whole, parts) = images_of(tmp_path / "pack")
    assert isinstance(found.train, PixelsByWorkers)
    for (images, labels), (others, other_labels) in zip(whole, parts, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)
    assert type(found.test).__name__ == "PackedSplit"


@pytest.mark.parametrize(
    "name", ["rand", "timm/rand-q3", "timm/4a", "rand_augment-m31", "TrivialAugmentWide", "auto_augment-mnist", "timm/"]
)
def test_a_policy_that_is_not_known_is_one_sentence(name):
    written = {
        "name": "tiny", "model": {"name": "mlp"}, "data": {"name": "digits", "policy": name}, "epochs": 1,
        "batch": {"global_batch_size": 100}, "optimizer": {"name": "sgd"}, "lr": {"base": 0.1},
    }  # fmt: skip
    with pytest.raises(UserError, match=re.escape(f"data.policy = {name!r} is not known; valid: rand_augment")):
        config.from_dict(written)


def test_policies_need_images_that_workers_decode(image_root):
    with pytest.raises(UserError, match=r"data.policy is for images; data set diabetes has none"):
        build("diabetes", policy="rand_augment")
    with pytest.raises(UserError, match=r"data.decode = nvjpeg decodes later; valid: turbo, pillow"):
        build("folder", root=str(image_root), policy="rand_augment", decode="nvjpeg")
