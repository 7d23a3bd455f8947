from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from largebatch.data import build
from largebatch.data.resident import ResidentSplit
from largebatch.errors import UserError
from tests.data.conftest import CPU, idx_bytes, pixels, write_idx


def raw_images(split: object) -> np.ndarray:
    assert isinstance(split, ResidentSplit)
    return split.tensors[0].numpy()


def labels_of(split: object) -> list[int]:
    assert isinstance(split, ResidentSplit)
    return split.tensors[1].tolist()


def test_idx_round_trip(mnist_like: Path):
    dataset = build("mnist", root=str(mnist_like))
    assert dataset.input_shape == (1, 28, 28)
    assert np.array_equal(raw_images(dataset.train), pixels(40, 28, 1))
    assert np.array_equal(raw_images(dataset.test), pixels(10, 28, 1, seed=1))
    assert labels_of(dataset.train) == [number % 10 for number in range(40)]
    assert str(mnist_like) in dataset.source


@pytest.mark.parametrize("inside", ["", "raw", "MNIST", "MNIST/raw", "mnist", "mnist/raw"])
def test_idx_folders_that_are_accepted(tmp_path: Path, inside: str):
    for kind, seed in (("train", 0), ("t10k", 1)):
        write_idx(tmp_path / inside, pixels(3, 28, 1, seed)[..., 0], np.arange(3, dtype=np.uint8), kind)
    assert len(build("mnist", root=str(tmp_path)).train) == 3


def break_idx(root: Path, how: str) -> str:
    """Damage the training images and give what the message must say."""
    path = root / "train-images-idx3-ubyte.gz"
    raw = gzip.decompress(path.read_bytes())
    if how == "half a gzip":
        path.write_bytes(path.read_bytes()[:500])
        return "not a whole gzip file"
    if how == "a flipped bit":
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        path.write_bytes(damaged)
        return "not a whole gzip file"
    if how == "truncated":
        path.write_bytes(gzip.compress(raw[:1000]))
        return "says 40 images of 28x28 = 31360 bytes, the file has 984"
    if how == "labels as images":
        path.write_bytes(gzip.compress(idx_bytes(np.zeros(40, np.uint8))))
        return "expected the magic number 0x00000803, found 0x00000801"
    if how == "other count":
        path.write_bytes(gzip.compress(idx_bytes(np.zeros((39, 28, 28), np.uint8))))
        return "39 images but .* 40 labels"
    if how == "other size":
        path.write_bytes(gzip.compress(idx_bytes(np.zeros((40, 27, 28), np.uint8))))
        return "should be 28x28x1, found 27x28x1"
    if how == "empty":
        path.write_bytes(gzip.compress(b""))
        return "not an IDX file"
    path.unlink()
    return "train-images-idx3-ubyte missing; run `largebatch data fetch mnist`"


@pytest.mark.parametrize(
    "how",
    [
        "half a gzip",
        "a flipped bit",
        "truncated",
        "labels as images",
        "other count",
        "other size",
        "empty",
        "gone",
    ],
)
def test_damaged_idx_is_named(mnist_like: Path, how: str):
    message = break_idx(mnist_like, how)
    with pytest.raises(UserError, match=message) as error:
        build("mnist", root=str(mnist_like))
    assert str(mnist_like) in str(error.value)


def test_a_label_without_a_class_is_refused(mnist_like: Path):
    (mnist_like / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.full(40, 10, np.uint8))))
    with pytest.raises(UserError, match="labels should be below 10, found 10"):
        build("mnist", root=str(mnist_like))


def cifar_batch(number: int) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Four images (N, H, W, C), their labels, and the images as the files have them: rows of three planes."""
    images = pixels(4, 32, 3, seed=number)
    return images, [(number + row) % 10 for row in range(4)], images.transpose(0, 3, 1, 2).reshape(4, 3072)


def cifar10_files() -> dict[str, bytes]:
    files = {}
    for number in range(1, 7):
        _, labels, planes = cifar_batch(number)
        name = f"data_batch_{number}" if number < 6 else "test_batch"
        rows = np.concatenate([np.array(labels, np.uint8)[:, None], planes], axis=1)
        files[f"cifar-10-batches-bin/{name}.bin"] = rows.tobytes()
    return files


def unpack(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def pack(files: dict[str, bytes], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path.parent


@pytest.mark.parametrize("packed", [False, True])
def test_cifar10_is_the_same_packed_or_not(tmp_path: Path, packed: bool):
    files = cifar10_files()
    root = pack(files, tmp_path / "cifar-10-binary.tar.gz") if packed else unpack(files, tmp_path)
    dataset = build("cifar10", root=str(root))
    expected = [cifar_batch(number) for number in range(1, 6)]
    assert np.array_equal(raw_images(dataset.train), np.concatenate([images for images, _, _ in expected]))
    assert labels_of(dataset.train) == [label for _, labels, _ in expected for label in labels]
    assert np.array_equal(raw_images(dataset.test), cifar_batch(6)[0])
    assert dataset.input_shape == (3, 32, 32)
    assert dataset.facts["augment"] == "crop_flip"
    if packed:
        assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-binary.tar.gz"]


def test_cifar100_takes_the_fine_labels(tmp_path: Path):
    images, _, planes = cifar_batch(1)
    fine = [99, 3, 40, 7]
    rows = np.concatenate([np.array([[1, label] for label in fine], np.uint8), planes], axis=1).tobytes()
    root = unpack({f"cifar-100-binary/{name}.bin": rows for name in ("train", "test")}, tmp_path)
    dataset = build("cifar100", root=str(root))
    assert np.array_equal(raw_images(dataset.train), images)
    assert labels_of(dataset.train) == fine
    assert len(set(dataset.classes)) == dataset.outputs == 100


class Malicious:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


PICKLED = ["cifar-10-batches-py/data_batch_1", "CIFAR10/cifar-10-batches-py/data_batch_1", "cifar-10-python.tar.gz"]


@pytest.mark.parametrize("where", PICKLED)
def test_the_python_version_is_refused_unopened(tmp_path: Path, where: str):
    root, victim = tmp_path / "root", tmp_path / "victim"
    unpack({where: pickle.dumps({b"data": Malicious(victim)})}, root)
    named = root / where.removesuffix("/data_batch_1")
    asked = [root, named] if named.is_dir() else [root]
    for folder in asked:
        with pytest.raises(UserError) as error:
            build("cifar10", root=str(folder))
        assert str(error.value) == (
            f"data set cifar10 in {named} is the Python version, which is pickled and not read; run `largebatch data "
            "fetch cifar10`, or put cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html into "
            f"{folder}"
        )
    assert not victim.exists()
    unpack(cifar10_files(), root)
    assert len(build("cifar10", root=str(root)).train) == 20


def test_a_truncated_binary_batch_is_named(tmp_path: Path):
    files = cifar10_files()
    files["cifar-10-batches-bin/data_batch_5.bin"] = b"x" * 5000
    with pytest.raises(UserError, match=r"data_batch_5.bin should be records of 3073 bytes, the file has 5000"):
        build("cifar10", root=str(unpack(files, tmp_path)))


@pytest.mark.parametrize("outside", ["../evil", "/tmp/evil", "cifar-10-batches-bin/../../evil"])
def test_an_archive_that_reaches_outside_is_refused(tmp_path: Path, outside: str):
    root = pack({outside: b"x", **cifar10_files()}, tmp_path / "root" / "cifar-10-binary.tar.gz")
    with pytest.raises(UserError, match="lies outside its folder"):
        build("cifar10", root=str(root))
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("kept", [100, -100])
def test_a_truncated_archive_is_named(tmp_path: Path, kept: int):
    root = pack(cifar10_files(), tmp_path / "cifar-10-binary.tar.gz")
    archive = tmp_path / "cifar-10-binary.tar.gz"
    archive.write_bytes(archive.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"cifar-10-binary.tar.gz is not a whole tar.gz archive"):
        build("cifar10", root=str(root))


def test_a_link_in_an_archive_is_not_followed(tmp_path: Path):
    files = cifar10_files()
    del files["cifar-10-batches-bin/test_batch.bin"]
    pack(files, tmp_path / "cifar-10-binary.tar.gz")
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        link = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(gzip.compress((tmp_path / "all.tar").read_bytes()))
    with pytest.raises(UserError, match="has no file cifar-10-batches-bin/test_batch.bin"):
        build("cifar10", root=str(tmp_path))


def jpeg_npz(path: Path, count: int, **changes: np.ndarray) -> list[np.ndarray]:
    """Write an npz of JPEG files; what a decoder makes of each."""
    files = []
    for number in range(count):
        buffer = io.BytesIO()
        Image.fromarray(pixels(1, 32, 3, seed=number)[0]).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    arrays = {
        "jpeg": np.frombuffer(b"".join(files), np.uint8),
        "offsets": np.cumsum([0, *map(len, files)]).astype(np.int32),
        "labels": np.arange(count, dtype=np.uint8),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **(arrays | changes))
    return [np.asarray(Image.open(io.BytesIO(file))) for file in files]


def test_jpeg_npz(tmp_path: Path):
    decoded = jpeg_npz(tmp_path / "cifar10" / "train.npz", 5)
    jpeg_npz(tmp_path / "cifar10" / "test.npz", 2)
    dataset = build("cifar10", root=str(tmp_path))
    assert np.array_equal(raw_images(dataset.train), np.stack(decoded))
    assert labels_of(dataset.train) == [0, 1, 2, 3, 4]
    assert "CIFAR-10 (JPEG)" in dataset.source


BAD_NPZ = [
    ({"offsets": np.array([0, 9, 5, 3], np.int32)}, "offsets do not divide"),
    ({"offsets": np.array([0, 9], np.int32)}, "offsets do not divide"),
    ({"jpeg": np.zeros(30, np.uint8), "offsets": np.array([0, 10, 20, 30])}, "image 0 is not a 32x32 JPEG"),
    ({"labels": np.array([{}, {}, {}], dtype=object)}, "not a whole npz"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_NPZ)
def test_a_damaged_npz_is_named(tmp_path: Path, changes: dict[str, np.ndarray], message: str):
    jpeg_npz(tmp_path / "train.npz", 3, **changes)
    jpeg_npz(tmp_path / "test.npz", 3)
    with pytest.raises(UserError, match=message) as error:
        build("cifar10", root=str(tmp_path))
    assert "train.npz" in str(error.value)


def test_a_truncated_npz_is_named(tmp_path: Path):
    jpeg_npz(tmp_path / "train.npz", 3)
    jpeg_npz(tmp_path / "test.npz", 3)
    (tmp_path / "train.npz").write_bytes((tmp_path / "train.npz").read_bytes()[:400])
    with pytest.raises(UserError, match=r"train.npz is not a whole npz"):
        build("cifar10", root=str(tmp_path))


def test_changed_files_are_read_again(mnist_like: Path):
    first = raw_images(build("mnist", root=str(mnist_like)).train)
    write_idx(mnist_like, 255 - pixels(40, 28, 1)[..., 0], np.zeros(40, np.uint8), "train", packed=True)
    assert np.array_equal(raw_images(build("mnist", root=str(mnist_like)).train), 255 - first)


def test_the_evaluation_view_is_the_files(mnist_like: Path):
    dataset = build("mnist", root=str(mnist_like))
    images = np.concatenate([images.numpy() for images, _ in dataset.test.batches(0, 1, 3, CPU)])
    raw = pixels(10, 28, 1, seed=1).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(images * 0.3081 + 0.1307, raw / 255, rtol=0, atol=1e-12)
