from __future__ import annotations

import builtins
import os
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets  # here, since importing it sets environment variables
import torch

from largebatch.data import build, sets
from largebatch.data.resident import ResidentSplit
from largebatch.errors import UserError
from tests.data.conftest import CPU


def arrays(split: object) -> tuple[np.ndarray, np.ndarray]:
    assert isinstance(split, ResidentSplit)
    return tuple(tensor.numpy() for tensor in split.tensors)


def test_names():
    assert sets.names() == [
        "cifar10", "cifar100", "diabetes", "digit_pairs", "digits", "fashion_mnist", "folder", "imagenet", "mnist",
        "synthetic", "text",
    ]  # fmt: skip


def test_digits():
    dataset = build("digits")
    assert (len(dataset.train), len(dataset.test)) == (1500, 297)
    assert dataset.input_shape == (1, 8, 8)
    images, labels = arrays(dataset.train)
    assert images.min() == 0
    assert images.max() == 255
    assert set(labels) == set(range(10))
    pixels = images / 255
    assert abs(pixels.mean() - 0.3053) < 5e-5
    assert abs(pixels.std() - 0.3759) < 5e-5
    both = np.concatenate([arrays(dataset.train)[0], arrays(dataset.test)[0]]).reshape(1797, 64)
    known = np.asarray(sklearn.datasets.load_digits(return_X_y=True)[0])
    assert sorted(map(bytes, np.rint(both.astype(float) * 16 / 255).astype(np.uint8))) == sorted(
        map(bytes, known.astype(np.uint8))
    )


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name: str, *rest: object, **more: object) -> object:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="scikit-learn, which is not installed"):
        build("digits")


@pytest.mark.parametrize("count", [1, 300, 1499])
def test_hold_out(count: int):
    whole, part = build("digits"), build("digits", hold_out=count)
    assert (len(part.train), len(part.test)) == (1500 - count, count)
    together = np.concatenate([arrays(part.train)[0], arrays(part.test)[0]])
    assert sorted(map(bytes, together)) == sorted(map(bytes, arrays(whole.train)[0]))
    again = build("digits", hold_out=count, seed=99)
    assert np.array_equal(arrays(part.test)[0], arrays(again.test)[0])
    if count == 300:
        assert np.bincount(arrays(part.test)[1]).tolist() == [30] * 10
        assert part.facts["evaluated on"] == "300 held-out training examples"


def test_hold_out_does_not_read_the_test_set(mnist_like: Path):
    (mnist_like / "t10k-images-idx3-ubyte").write_bytes(b"broken")
    assert len(build("mnist", root=str(mnist_like), hold_out=10).test) == 10
    with pytest.raises(UserError, match="t10k-images-idx3-ubyte"):
        build("mnist", root=str(mnist_like))


@pytest.mark.worlds
def test_synthetic():
    dataset = build("synthetic", examples=500, num_classes=7, image_shape=(4, 6, 5), seed=1)
    assert (len(dataset.train), len(dataset.test), dataset.outputs) == (500, 50, 7)
    images, labels = next(iter(dataset.train.batches(0, 1, 500, CPU)))
    assert images.shape == (500, 4, 6, 5)
    assert set(labels.tolist()) == set(range(7))
    assert abs(images.mean()) < 0.02
    assert abs(images.std() - 1) < 0.02
    same = build("synthetic", examples=500, num_classes=7, image_shape=(4, 6, 5), seed=1)
    other = build("synthetic", examples=500, num_classes=7, image_shape=(4, 6, 5), seed=2)
    assert np.array_equal(arrays(dataset.train)[0], arrays(same.train)[0])
    assert not np.array_equal(arrays(dataset.train)[0], arrays(other.train)[0])
    assert not np.array_equal(arrays(dataset.train)[0][:50], arrays(dataset.test)[0])
    assert build("synthetic", examples=5, image_size=48).input_shape == (3, 48, 48)
    assert len(build("synthetic").train) == 10_000


MISTAKES = [
    ({"name": "fasion_mnist"}, r"data.name = 'fasion_mnist' .*; did you mean fashion_mnist\?"),
    ({"name": "zzz"}, "data.name = 'zzz' is not a data set; valid: cifar10"),
    ({"name": "z" * 1000}, f"data.name = '{'z' * 60}' is not a data set; valid: cifar10"),
    ({"name": "digits", "augment": "crop_fip"}, r"data.augment = 'crop_fip' .*; did you mean crop_flip\?"),
    (
        {"name": "digits", "augment": "resized_crop_flip"},
        "does not suit data set digits; valid: auto, none, flip",
    ),
    (
        {"name": "folder", "augment": "crop"},
        "data.augment = 'crop' does not suit data set folder; valid: auto, none",
    ),
    (
        {"name": "digits", "image_size": 16},
        "data.image_size = 16 does not fit data set digits; its images are 8x8",
    ),
    ({"name": "synthetic", "image_size": 16, "image_shape": (3, 8, 8)}, "data.image_size = 16 does not fit"),
    ({"name": "digits", "hold_out": 1500}, "data.hold_out = 1500 leaves nothing to train on; at most 1499"),
    ({"name": "digits", "hold_out": -1}, "data.hold_out = -1 is out of range; at least 0"),
    ({"name": "synthetic", "examples": 0}, "data.examples = 0 is out of range; at least 1"),
    ({"name": "synthetic", "num_classes": 0}, "data.num_classes = 0 is out of range"),
    (
        {"name": "synthetic", "image_shape": (3, 8)},
        r"data.image_shape = \[3, 8\] should be three positive sizes",
    ),
    ({"name": "synthetic", "image_shape": (3, 8, 0)}, r"data.image_shape = \[3, 8, 0\] should be"),
    ({"name": "folder", "workers": -1}, "data.workers = -1 is out of range"),
    ({"name": "folder"}, "data.root is missing"),
    (
        {"name": "digits", "num_classes": 10},
        "data.num_classes is for synthetic only; data set digits has its own",
    ),
    ({"name": "mnist", "examples": 5}, "data.examples is for synthetic only"),
    ({"name": "mnist", "image_shape": (1, 28, 28)}, "data.image_shape is for synthetic only"),
    ({"name": "digits", "root": "x"}, "data.root = 'x' is not used: data set digits has no files"),
    (
        {"name": "mnist", "root": "/nowhere"},
        "data set mnist not found in /nowhere; run `largebatch data fetch mnist`",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes(arguments: dict, message: str):
    with pytest.raises(UserError, match=message) as error:
        build(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.worlds
@pytest.mark.real_data
@pytest.mark.skipif(not os.environ.get("LARGEBATCH_DATA"), reason="LARGEBATCH_DATA is not set")
@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("mnist", (1, 28, 28), 10), pytest.param("cifar10", (3, 32, 32), 10, marks=pytest.mark.slow)],
)
def test_real_sets_are_normalised_by_their_statistics(name: str, shape: tuple[int, int, int], classes: int):
    dataset = build(name)
    assert (len(dataset.train), len(dataset.test)) == ({"mnist": 60_000, "cifar10": 50_000}[name], 10_000)
    assert (dataset.input_shape, dataset.outputs) == (shape, classes)
    count, total, squares = (
        0,
        torch.zeros(shape[0], dtype=torch.float64),
        torch.zeros(shape[0], dtype=torch.float64),
    )
    for images, labels in dataset.train.batches(0, 1, 5000, CPU):
        count += len(labels)
        total += images.mean((2, 3)).sum(0)
        squares += images.square().mean((2, 3)).sum(0)
    mean = total / count
    assert mean.abs().max() < 0.01
    assert ((squares / count - mean**2).sqrt() - 1).abs().max() < 0.01


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_resident_set_gives_the_same_on_a_gpu():
    from largebatch.data import Placement
    from largebatch.plan.batch import resolve

    dataset = build("synthetic", examples=64, augment="crop_flip")
    plan = resolve(dataset_size=64, global_batch_size=32, micro_batch_size=8, steps=3)
    on_gpu = Placement(torch.device("cuda"), torch.float64, True)
    pairs = [dataset.train.steps(plan, 0, 0, placement, 0) for placement in (CPU, on_gpu)]
    for here, there in zip(*pairs, strict=True):
        for (images, labels), (gpu_images, gpu_labels) in zip(here, there, strict=True):
            assert gpu_images.is_cuda
            assert torch.equal(images, gpu_images.cpu())
            assert torch.equal(labels, gpu_labels.cpu())
