"""Encoded images to what a model sees of them: uint8 views (S, S, 3).

A window is drawn on the image's own size and says which region becomes how many pixels, whichever decoder follows.

``pillow``   the measure: Pillow decodes the whole image and resizes (bilinear, antialiased).
``turbo``    JPEG by libjpeg-turbo, resized by torch's AVX code. Where the region is at least 2, 4 or 8 times as large
             as wanted, libjpeg-turbo decodes at that fraction (in the discrete cosine transform): fewer pixels to
             make, none to throw away. The other fractions have no vector code and do not pay. Everything that is not
             a sound JPEG in colour (YCbCr) or grey goes to Pillow, and fails there or not: a truncated file is an error
             with both.

At full scale both decode the same pixels (accurate transform, smooth upsampling of the colours), and resizing differs
by rounding, at most 2 of 256 levels. At a fraction, blocks are averaged where Pillow weighs neighbours, and a region's
edges lie between whole decoded pixels: at most half a pixel of the view off. On photographs that is 2 to 4 levels in
the mean of training views, and below 2 of evaluation views, whose region is the whole image.

Pixels are 8 bits of red, green and blue, by one rule for every decoder and for packs (:func:`rgb`): of 16 bits the
upper 8, of transparency nothing (the colours beneath it as they are stored), grey three times.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

from largebatch.data.augment import resized_crop_box
from largebatch.data.sizes import CENTRE

DECODERS = ("pillow", "turbo")
JPEG = b"\xff\xd8\xff"  # how every JPEG file begins
_LONGEST = 8  # short sides; of a longer image the ends are never seen in an evaluation
_BITS_PER_SAMPLE = 258  # TIFF's tag; 12 bits have mode I;16, too
_WITH_ALPHA = {"RGBa": "RGBA", "La": "LA", "P": "RGBA"}  # what Pillow does not convert at once, or not in silence
_SIXTEEN_BITS = {"PNG", "PPM"}  # where Pillow calls 16 bits of grey mode I, which elsewhere has 32


class Window(NamedTuple):
    """``region`` of the stored image becomes ``resized`` pixels; the view lies in those at ``corner``."""

    region: tuple[int, int, int, int]  # left, upper, right, lower
    resized: tuple[int, int]  # wide, tall
    corner: tuple[int, int] = (0, 0)  # left, upper
    flip: bool = False


Draw = Callable[[int, int], Window]  # width and height -> window


def evaluation_window(width: int, height: int, size: int, crop: float = CENTRE) -> Window:
    """The central ``size`` × ``size`` of the image resized to a short side of size / ``crop``.

    Of an image more than 8 times as long as it is wide the middle alone is resized, so that a thread of pixels takes no
    more memory than any image.
    """
    short = round(size / crop)
    stored = min(width, height)
    region = _middle(width, height, _LONGEST * stored)
    wide, tall = (max(short, round((end - start) * short / stored)) for start, end in (region[::2], region[1::2]))
    return Window(region, (wide, tall), (round((wide - size) / 2), round((tall - size) / 2)))


def _middle(width: int, height: int, longest: int) -> tuple[int, int, int, int]:
    """The region where neither side is above ``longest``: the same number of pixels is left out at both ends."""
    left, upper = (max(0, -((longest - side) // 2)) for side in (width, height))
    return left, upper, width - left, height - upper


def training_window(
    width: int, height: int, size: int, augment: str, rng: np.random.Generator, crop: float = CENTRE
) -> Window:
    """A random window as :mod:`largebatch.data.augment` defines ``augment``: the box first, then the flip."""
    if augment.startswith("resized_crop"):
        window = Window(resized_crop_box(width, height, rng), (size, size))
    else:
        window = evaluation_window(width, height, size, crop)
    if augment.endswith("flip"):
        window = window._replace(flip=bool(rng.integers(0, 2)))
    return window


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG in colour (YCbCr) or grey, from its header; None for anything else."""
    if not data.startswith(JPEG):
        return None
    try:
        tall, wide, colours, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, RuntimeError):  # broken, or a kind that TurboJPEG does not know
        return None
    height, width = int(tall), int(wide)
    bound = Image.MAX_IMAGE_PIXELS  # beyond it Pillow warns of a decompression bomb, or refuses
    return None if colours not in ("YCbCr", "Gray") or (bound and width * height > bound) else (width, height)


def view(data: bytes, size: int, draw: Draw, decode: str) -> Tensor:
    """The view (S, S, 3) of the encoded image that ``draw`` chooses; broken data raises nearly anything."""
    found = _turbo(data, size, draw) if decode == "turbo" else None
    return _pillow(data, size, draw) if found is None else found


def why_unreadable(failure: Exception) -> str:
    """Why an image could not be read, in a few words."""
    if isinstance(failure, UnidentifiedImageError):
        return "not an image of a known format"  # its own words name a buffer
    return (getattr(failure, "strerror", None) or str(failure) or type(failure).__name__).split("\n")[0]


def rgb(file: Image.Image, region: tuple[int, int, int, int] | None = None) -> Image.Image:
    """The image, or a region of it, in 8 bits of red, green and blue.

    Raises ValueError where its black and white are not known.
    """
    shift = _bits_beyond_8(file)
    image = file if region in (None, (0, 0, *file.size)) else file.crop(region)
    if shift:
        return Image.fromarray((np.asarray(image) >> shift).astype(np.uint8)).convert("RGB")
    if image.mode in _WITH_ALPHA:
        image = image.convert(_WITH_ALPHA[image.mode])
    return image.convert("RGB")


def _bits_beyond_8(file: Image.Image) -> int:
    """How many lower bits of grey are dropped. Raises for numbers whose range nobody states."""
    if file.mode.startswith("I;16"):
        (bits,) = getattr(file, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))
        return bits - 8
    if file.mode == "I" and file.format in _SIXTEEN_BITS:
        return 8
    if file.mode in ("I", "F"):
        raise ValueError(
            f"its pixels are numbers of 32 bits (mode {file.mode}) and it does not say which are black and white; save "
            "it with 8 or 16 bits"
        )
    return 0


def _pillow(data: bytes, size: int, draw: Draw) -> Tensor:
    with Image.open(io.BytesIO(data)) as file:
        region, resized, (left, upper), flip = draw(*file.size)
        image = rgb(file, region)
    image = image.resize(resized, Image.Resampling.BILINEAR).crop((left, upper, left + size, upper + size))
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(image))


def _turbo(data: bytes, size: int, draw: Draw) -> Tensor | None:
    """None where Pillow is to judge."""
    stored = jpeg_size(data)
    if stored is None:
        return None
    width, height = stored
    window = draw(width, height)
    fraction = _fraction(window)
    try:  # simplejpeg takes the smallest scale that gives at least these: the one that they are computed from
        pixels = simplejpeg.decode_jpeg(data, min_height=-(-height // fraction), min_width=-(-width // fraction))
    except (ValueError, RuntimeError):  # broken in its body
        return None
    return resized_view(pixels, window, size, fraction)


def _fraction(window: Window) -> int:
    """The largest of 8, 4, 2 and 1 that leaves the region with as many pixels as it is resized to."""
    left, upper, right, lower = window.region
    surplus = min((right - left) / window.resized[0], (lower - upper) / window.resized[1])
    return next((fraction for fraction in (8, 4, 2) if surplus >= fraction), 1)


def resized_view(pixels: np.ndarray, window: Window, size: int, fraction: int = 1) -> Tensor:
    """The window's view (S, S, 3) of an image (H, W, 3) that was decoded at 1 / ``fraction`` of its size."""
    left, upper, right, lower = ((edge + fraction // 2) // fraction for edge in window.region)
    # Dense, and the first dimension made by torch before the others move: only then it sees pixels and gives pixels
    # back. Planes, and copying them into the batch, would cost as much again as the resizing.
    region = torch.from_numpy(np.ascontiguousarray(pixels[upper:lower, left:right]))[None].permute(0, 3, 1, 2)
    wide, tall = window.resized
    resized = interpolate(region, (tall, wide), mode="bilinear", antialias=True)
    left, upper = window.corner
    view = resized[..., upper : upper + size, left : left + size]
    return (view.flip(3) if window.flip else view)[0].permute(1, 2, 0)
