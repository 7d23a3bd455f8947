"""The public file formats, read strictly: what a file claims is compared with what it holds.

- IDX (LeCun): big-endian magic 0x0000_08_dd (unsigned bytes, dd dimensions), dd sizes, then the bytes.
- CIFAR, binary version: records of 1 label byte (CIFAR-100: coarse, then fine), 1024 red, green, blue. The Python
  version is pickles, which nothing here opens.
- JPEG archive: an npz with ``jpeg`` (all files end to end, uint8), ``offsets`` (N + 1) and ``labels``.

A file that would unfold to more than 1 GiB is refused, and so is every other way of a stranger's file to do more than
be read. Every reader returns images uint8 (N, H, W, C) and labels. What cannot be read is a ``UserError`` that
names the file, what was expected and what was found.
"""

from __future__ import annotations

import gzip
import io
import itertools
import math
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from largebatch.errors import UserError

LARGEST_FILE = 1 << 30  # bytes, unpacked; the largest one of these sets has 155 million
Arrays = tuple[np.ndarray, np.ndarray]
Read = Callable[[str], tuple[str, bytes]]  # a file's plain name -> where it lies (for messages), its bytes


@dataclass(frozen=True)
class Form:
    """One way a data set lies on disk: its files, its usual folder, and who reads a split."""

    title: str
    folder: str | None  # the folder its archive unpacks to
    train: tuple[str, ...]
    test: tuple[str, ...]
    arrays: Callable[[Read, Sequence[str]], Arrays]
    archive: str | None = None  # what its archive is called

    @property
    def files(self) -> tuple[str, ...]:
        return self.train + self.test

    def missing(self, folder: Path) -> list[str]:
        return [name for name in self.files if path_of(folder, name) is None]


def path_of(folder: Path, name: str) -> Path | None:
    """Where ``name`` lies in ``folder``: as it is, gzipped, or with a dot for the IDX dash."""
    dotted = name.replace("-idx", ".idx")
    for candidate in dict.fromkeys((name, f"{name}.gz", dotted, f"{dotted}.gz")):
        if os.path.isfile(folder / candidate):  # unlike Path.is_file, False where we may not look
            return folder / candidate
    return None


def from_folder(folder: Path) -> Read:
    def read(name: str) -> tuple[str, bytes]:
        path = path_of(folder, name)
        if path is None:
            raise UserError(f"{folder / name} is missing")
        try:
            raw = path.read_bytes()
            return str(path), _unzipped(path, raw) if path.suffix == ".gz" else raw
        except (gzip.BadGzipFile, EOFError, zlib.error) as reason:
            raise UserError(f"{path} is not a whole gzip file ({reason}); fetch it again") from None
        except OSError as reason:
            raise UserError(f"{path} cannot be read: {reason.strerror}") from None

    return read


def _unzipped(path: Path, raw: bytes) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
        unpacked = file.read(LARGEST_FILE + 1)
    check_size(path, len(unpacked))
    return unpacked


def check_size(where: object, size: int) -> None:
    if size > LARGEST_FILE:
        raise UserError(f"{where} is refused: it unpacks to more than {LARGEST_FILE:,} bytes")


def from_archive(archive: Path, form: Form) -> Read:
    """Reads the form's files out of its tar.gz in one pass; nothing is unpacked, nothing else is read."""
    contents = archive_contents(archive, form)
    return lambda name: (f"{archive}: {form.folder}/{name}", contents[name])


def archive_contents(archive: Path, form: Form) -> dict[str, bytes]:
    """The form's files in its tar archive; one that reaches outside its own folder is refused."""
    wanted = {f"{form.folder}/{name}": name for name in form.files}
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                parts = PurePosixPath(member.name)
                if parts.is_absolute() or ".." in parts.parts:
                    raise UserError(f"{archive} is refused: its member {member.name[:80]!r} lies outside its folder")
                name = wanted.get(str(parts))
                file = tar.extractfile(member) if name and member.isreg() else None
                if name and file:
                    check_size(f"{archive}: {name}", member.size)
                    contents[name] = file.read()
    except UserError:
        raise
    except Exception as reason:  # tarfile, or what it unpacks with: nearly anything
        why = reason.strerror if isinstance(reason, OSError) and reason.strerror else f"{reason}"[:100]
        raise UserError(f"{archive} is not a whole tar.gz archive ({why}); fetch it again") from None
    for name in form.files:
        if name not in contents:
            raise UserError(f"{archive} has no file {form.folder}/{name}")
    return contents


def idx(where: str, raw: bytes, dimensions: int) -> np.ndarray:
    """The array of an IDX file of unsigned bytes."""
    header = 4 + 4 * dimensions
    if len(raw) < header or int.from_bytes(raw[:4], "big") != 0x0800 + dimensions:
        raise UserError(
            f"{where} is not an IDX file of {dimensions}-dimensional bytes: "
            f"expected the magic number 0x{0x0800 + dimensions:08x}, found 0x{raw[:4].hex()}"
        )
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", dimensions, offset=4))
    expected, found = math.prod(shape), len(raw) - header
    if expected != found:
        noun = " images of " + "x".join(map(str, shape[1:])) if dimensions > 1 else " labels"
        raise UserError(
            f"{where} is truncated or corrupt: its header says {shape[0]}{noun} = {expected} bytes, "
            f"the file has {found}"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy()


def _idx_arrays(read: Read, names: Sequence[str]) -> Arrays:
    images_name, labels_name = names
    (images_at, images_raw), (labels_at, labels_raw) = read(images_name), read(labels_name)
    images, labels = idx(images_at, images_raw, 3), idx(labels_at, labels_raw, 1)
    if len(images) != len(labels):
        raise UserError(f"{images_at} has {len(images)} images but {labels_at} has {len(labels)} labels")
    return images[..., None], labels


def _planes_to_images(planes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def binary_arrays(label_bytes: int) -> Callable[[Read, Sequence[str]], Arrays]:
    record = label_bytes + 3072

    def arrays(read: Read, names: Sequence[str]) -> Arrays:
        parts = []
        for name in names:
            where, raw = read(name)
            if not raw or len(raw) % record:
                raise UserError(f"{where} should be records of {record} bytes, the file has {len(raw)} bytes")
            parts.append(np.frombuffer(raw, np.uint8).reshape(-1, record))
        records = np.concatenate(parts)
        return _planes_to_images(records[:, label_bytes:]), records[:, label_bytes - 1].copy()

    return arrays


def _jpeg_arrays(read: Read, names: Sequence[str]) -> Arrays:
    from PIL import Image

    where, raw = read(names[0])
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            check_size(where, sum(member.file_size for member in archive.infolist()))
        with np.load(io.BytesIO(raw), allow_pickle=False) as archive:
            jpeg, offsets, labels = (_vector(archive[key], key) for key in ("jpeg", "offsets", "labels"))
    except UserError:
        raise
    except Exception as reason:  # zipfile, numpy, or what they unpack with: nearly anything
        raise UserError(f"{where} is not a whole npz of jpeg, offsets and labels ({f'{reason}'[:100]})") from None
    ends = [int(offsets[0]), int(offsets[-1])] if len(offsets) == len(labels) + 1 else []
    if ends != [0, len(jpeg)] or (np.diff(offsets) < 0).any():
        raise UserError(f"{where}: its offsets do not divide {len(jpeg)} bytes of JPEG into {len(labels)} images")
    images = np.empty((len(labels), 32, 32, 3), np.uint8)
    files = jpeg.tobytes()
    for number, (start, end) in enumerate(itertools.pairwise(offsets.tolist())):
        try:  # serial: files this small spend their time in Python, where threads only wait for each other
            with Image.open(io.BytesIO(files[start:end]), formats=["JPEG"]) as image:
                images[number] = np.asarray(image.convert("RGB"))
        except Exception as reason:
            raise UserError(f"{where}: image {number} is not a 32x32 JPEG ({reason})") from None
    return images, labels


def _vector(array: np.ndarray, key: str) -> np.ndarray:
    if array.ndim != 1 or array.dtype.kind not in "iu" or (key == "jpeg" and array.dtype != np.uint8):
        raise ValueError(f"{key} is {array.dtype} {array.shape}")
    return array


IDX = Form(
    "IDX files",
    None,
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    _idx_arrays,
)
JPEG_ARCHIVE = Form("JPEG in npz files", None, ("train.npz",), ("test.npz",), _jpeg_arrays)
