"""Views of encoded images: Pillow's as written out here, libjpeg-turbo's beside them."""

from __future__ import annotations

import functools
import io
import math
import os
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, UnidentifiedImageError

from largebatch.data import decode as decoding
from largebatch.data.augment import example_generator, resized_crop_box
from largebatch.data.decode import Draw, Window, evaluation_window, jpeg_size, training_window, view, why_unreadable
from largebatch.data.encoded import Undecoded
from largebatch.data.packs.writing import square
from largebatch.data.views import centre_box


def photograph(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth shades, edges and a little noise: what a JPEG is made for."""
    rng = np.random.default_rng(width * height)
    down, across = np.mgrid[0:height, 0:width]
    shades = [127 + 100 * np.sin(across / (17 + 9 * c) + c) * np.cos(down / (29 - 6 * c)) for c in range(3)]
    noisy = np.stack(shades, axis=2) + rng.normal(0, 4, (height, width, 3))
    image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    ImageDraw.Draw(image).ellipse((width // 4, height // 4, width // 2, height // 2), fill=(200, 40, 90))
    return image.convert(mode)


def encoded(image: Image.Image, form: str = "JPEG", **given: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **given)
    return file.getvalue()


def fixed(window: Window) -> Draw:
    return lambda width, height: window


def training_draw(size: int, position: int, augment: str = "resized_crop_flip") -> Draw:
    """Draws anew each time it is asked."""
    return lambda width, height: training_window(width, height, size, augment, example_generator(1, position))


def by_hand(data: bytes, size: int, window: Window) -> np.ndarray:
    """Pillow, step by step."""
    image = Image.open(io.BytesIO(data)).convert("RGB").crop(window.region)
    image = image.resize(window.resized, Image.Resampling.BILINEAR)
    left, upper = window.corner
    pixels = np.asarray(image)[upper : upper + size, left : left + size]
    return pixels[:, ::-1] if window.flip else pixels


def fraction_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The fractions that are decoded at from now on."""
    met: list[int] = []
    original = decoding.simplejpeg.decode_jpeg

    def told(data: bytes, min_height: int, min_width: int) -> np.ndarray:
        pixels = original(data, min_height=min_height, min_width=min_width)
        width, height = jpeg_size(data) or (0, 0)
        assert pixels.shape == (min_height, min_width, 3), "exactly the scale that was chosen"
        met.append(round(max(height / pixels.shape[0], width / pixels.shape[1])))
        return pixels

    monkeypatch.setattr(decoding.simplejpeg, "decode_jpeg", told)
    return met


KINDS = {
    "420": {"subsampling": 2}, "422": {"subsampling": 1}, "444": {"subsampling": 0},
    "progressive": {"progressive": True}, "coarse": {"quality": 30}, "grey": {},
}  # fmt: skip


def jpeg(kind: str, width: int, height: int) -> bytes:
    return encoded(photograph(width, height, "L" if kind == "grey" else "RGB"), **KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_at_full_scale_the_decoded_pixels_are_pillows_bit_for_bit(kind: str):
    for width, height in ((97, 61), (64, 64), (33, 120)):
        data = jpeg(kind, width, height)
        pixels = simplejpeg.decode_jpeg(data)
        assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
        assert jpeg_size(data) == (width, height)


@pytest.mark.worlds
@pytest.mark.parametrize("kind", [*KINDS, "PNG", "WEBP", "CMYK", "RGB", "palette"])
@pytest.mark.parametrize("augment", ["none", "flip", "resized_crop_flip"])
def test_pillow_is_the_measure_and_turbo_is_within_two_levels(kind: str, augment: str):
    others = {
        "PNG": lambda: encoded(photograph(90, 70, "RGBA"), "PNG"),
        "WEBP": lambda: encoded(photograph(90, 70), "WEBP", lossless=True),
        "CMYK": lambda: encoded(photograph(90, 70, "CMYK")),
        "RGB": lambda: encoded(photograph(90, 70), keep_rgb=True),
        "palette": lambda: encoded(photograph(90, 70).quantize(16), "PNG"),
    }
    data = others[kind]() if kind in others else jpeg(kind, 90, 70)
    for position in range(12):
        draw = training_draw(64, position, augment)
        expected = by_hand(data, 64, draw(90, 70))
        assert np.array_equal(view(data, 64, draw, "pillow").numpy(), expected)
        found = view(data, 64, draw, "turbo").numpy()
        assert found.shape == (64, 64, 3)
        assert found.flags.c_contiguous or augment != "resized_crop_flip", "planes are slow to copy"
        off = np.abs(found.astype(int) - expected)
        assert off.max() <= (0 if kind in others else 2)
        assert off.mean() < 0.2


@pytest.mark.worlds
def test_the_smallest_sufficient_fraction_is_decoded(monkeypatch: pytest.MonkeyPatch):
    data = jpeg("420", 803, 601)
    met = fraction_of(monkeypatch)
    for wide, tall, size, fraction in (
        (800, 600, 301, 1), (800, 600, 300, 2), (800, 600, 151, 2), (800, 600, 150, 4),
        (800, 600, 76, 4), (800, 600, 75, 8), (800, 600, 8, 8), (400, 63, 32, 1), (64, 400, 32, 2),
    ):  # fmt: skip
        window = Window((1, 0, 1 + wide, tall), (size, size))
        found = view(data, size, fixed(window), "turbo").numpy().astype(int)
        assert met.pop() == fraction
        off = np.abs(found - by_hand(data, size, window))
        assert off.mean() < (0.2 if fraction == 1 else 5), (wide, tall, size)
    view(data, 32, functools.partial(evaluation_window, size=32), "turbo")
    assert met == [8]
    view(data, 263, functools.partial(evaluation_window, size=263), "turbo")  # a short side of 301
    assert met == [8, 1]


@pytest.mark.parametrize("fraction", [1, 2, 4, 8])
def test_a_region_keeps_its_place_and_enough_pixels_at_every_fraction(fraction: int, monkeypatch: pytest.MonkeyPatch):
    """A ramp of brightness tells where a view lies: within half a pixel of the view, at the image's edges too."""
    width, height, size = 640, 480, 48
    ramp = np.linspace(0, 255, width)[None, :, None].repeat(height, 0).repeat(3, 2)
    data = encoded(Image.fromarray(ramp.astype(np.uint8)), quality=98)
    met = fraction_of(monkeypatch)
    wide = fraction * size + 1
    for left in (0, 1, 2, 3, 5, 7, 11, width - wide):
        window = Window((left, 0, left + wide, wide), (size, size))
        found = view(data, size, fixed(window), "turbo").numpy().astype(float)
        expected = (left + (np.arange(size) + 0.5) * wide / size - 0.5) * 255 / (width - 1)
        pixel = 255 / (width - 1) * wide / size
        assert np.abs(found[..., 1].mean(0) - expected).max() < 0.5 * pixel + 1.5
    assert set(met) == {fraction}


@pytest.mark.parametrize("progressive", [False, True])
def test_what_pillow_refuses_turbo_refuses_in_the_same_words(progressive: bool):
    data = encoded(photograph(160, 120), progressive=progressive)
    for cut in (1, 2, 3, 10, 100, 500, len(data) // 2, len(data) - 300, len(data) - 3, len(data)):
        failures = []
        for decode in decoding.DECODERS:
            for size in (16, 120):  # at an eighth and in full
                with pytest.raises(Exception) as failure:  # noqa: PT011
                    view(data[: len(data) - cut], size, training_draw(size, 0, "none"), decode)
                failures.append(why_unreadable(failure.value))
        assert len(set(failures)) == 1, (cut, failures)
    with pytest.raises(UnidentifiedImageError):
        view(b"\xff\xd8\xff not an image", 16, training_draw(16, 0), "turbo")


def test_damage_that_pillow_lives_with_turbo_leaves_to_it():
    data = encoded(photograph(160, 120))
    rng = np.random.default_rng(0)
    seen = {"by pillow": 0, "refused": 0}
    for _ in range(60):
        broken = bytearray(data)
        broken[int(rng.integers(len(data) // 2, len(data) - 2))] = int(rng.integers(0, 255))
        draw = training_draw(100, 0, "none")
        try:
            expected = view(bytes(broken), 100, draw, "pillow")
        except Exception:
            with pytest.raises(Exception):  # noqa: B017, PT011
                view(bytes(broken), 100, draw, "turbo")
            seen["refused"] += 1
            continue
        off = (view(bytes(broken), 100, draw, "turbo").int() - expected.int()).abs()
        assert off.max() <= 2
        try:
            simplejpeg.decode_jpeg(broken)
        except ValueError:
            assert off.max() == 0
            seen["by pillow"] += 1
    assert seen["by pillow"] > 5


def test_a_decompression_bomb_is_pillows_to_judge(monkeypatch: pytest.MonkeyPatch):
    data = jpeg("420", 90, 70)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)  # twice that is an error
    for decode in decoding.DECODERS:
        with pytest.raises(Image.DecompressionBombError):
            view(data, 16, training_draw(16, 0), decode)


def test_the_window_does_not_depend_on_the_decoder():
    """Every decoder asks for the size that is stored, whatever it decodes."""
    data = jpeg("420", 500, 375)
    asked = []

    def draw(width: int, height: int) -> Window:
        asked.append((width, height))
        return training_window(width, height, 32, "resized_crop_flip", example_generator(0, 0))

    for decode in decoding.DECODERS:
        view(data, 32, draw, decode)
    assert asked == [(500, 375)] * 2


@pytest.mark.worlds
@pytest.mark.real_data
@pytest.mark.parametrize("size", [224, 96])
def test_on_real_photographs(size: int, monkeypatch: pytest.MonkeyPatch):
    files = sorted(Path(os.environ["LARGEBATCH_DATA"], "imagenet_samples").glob("*.JPEG"))
    assert len(files) == 200
    met = fraction_of(monkeypatch)
    off: dict[str, list[float]] = {"in full": [], "trained on": [], "evaluated": []}
    for number, file in enumerate(files):
        data = file.read_bytes()
        draws = {
            "trained on": training_draw(size, number),
            "evaluated": functools.partial(evaluation_window, size=size),
        }
        for use, draw in draws.items():
            found, expected = (view(data, size, draw, decode).int() for decode in ("turbo", "pillow"))
            difference = (found - expected).abs()
            if met[-1] == 1:
                assert difference.max() <= 2
            off["in full" if met[-1] == 1 else use].append(difference.float().mean().item())
    assert np.mean(off["in full"]) < 0.05
    assert 0 < np.mean(off["trained on"]) < 4
    assert max(off["trained on"]) < 25, "half a pixel beside a fine texture"
    assert 0 < np.mean(off["evaluated"]) < 2
    assert max(off["evaluated"]) < 6
    assert len(met) == 400, "all went through libjpeg-turbo"


def test_the_evaluation_view_is_the_centre():
    marked = np.full((64, 128, 3), 255, np.uint8)
    marked[:, :32] = marked[:, 96:] = 0
    draw = functools.partial(evaluation_window, size=28)
    found = view(encoded(Image.fromarray(marked), "PNG"), 28, draw, "pillow")  # 32 x 64, columns 18 to 46 remain
    assert found.shape == (28, 28, 3)
    assert (found == 255).all()
    for decode in decoding.DECODERS:
        assert view(encoded(Image.fromarray(marked[:3])), 28, draw, decode).shape == (28, 28, 3)


def test_plain_and_mirrored_training_views():
    data = encoded(photograph(30, 40))
    for decode in decoding.DECODERS:
        plain = view(data, 16, functools.partial(evaluation_window, size=16), decode)
        assert torch.equal(view(data, 16, training_draw(16, 0, "none"), decode), plain)
        views = [view(data, 16, training_draw(16, position, "flip"), decode) for position in range(40)]
        mirrored = [torch.equal(found, plain.flip(1)) for found in views]
        assert 0 < sum(mirrored) < 40
        assert all(flipped or torch.equal(found, plain) for flipped, found in zip(mirrored, views, strict=True))


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (64, 64)])
def test_resized_crops_have_the_stated_areas_and_ratios(width: int, height: int):
    areas, ratios = [], []
    for position in range(2000):
        left, upper, right, lower = resized_crop_box(width, height, example_generator(1, position))
        assert 0 <= left < right <= width
        assert 0 <= upper < lower <= height
        areas.append((right - left) * (lower - upper) / (width * height))
        ratios.append((right - left) / (lower - upper))
    assert 0.07 < min(areas) < 0.1
    assert 0.95 < max(areas) <= 1
    assert 3 / 4 - 0.05 < min(ratios) < 0.78
    assert 1.3 < max(ratios) < 4 / 3 + 0.05
    assert abs(np.mean(np.log(ratios))) < 0.25 * math.log(4 / 3)


@pytest.mark.parametrize(("width", "height", "box"), [(1000, 10, (494, 0, 507, 10)), (10, 1000, (0, 494, 10, 507))])
def test_an_image_too_long_for_any_window_gives_its_centre(width: int, height: int, box: tuple[int, ...]):
    rng = example_generator(0, 0)
    found = resized_crop_box(width, height, rng)
    assert (found[2] - found[0], found[3] - found[1]) == (box[2] - box[0], box[3] - box[1])
    assert all(abs(a - b) <= 1 for a, b in zip(found, box, strict=True))


GREY = (np.arange(48 * 48).reshape(48, 48) * 28).astype(np.uint16)  # 16 bits
UPPER = (GREY >> 8).astype(np.uint8)


def grey_in(kind: str) -> bytes:
    """An image whose red, green and blue are UPPER, in many forms."""
    low = Image.fromarray(UPPER)
    shown = Image.fromarray(255 - UPPER)  # transparency
    netpbm = {"16-bit PGM": (65535, 0), "12-bit PGM": (4095, 4)}
    if kind in netpbm:
        white, shift = netpbm[kind]
        return b"P5 48 48 %d\n" % white + (GREY >> shift).astype(">u2").tobytes()
    image, form, given = {
        "16-bit PNG": (Image.fromarray(GREY), "PNG", {}),
        "16-bit TIFF": (Image.fromarray(GREY), "TIFF", {}),
        "16-bit TIFF, big-endian": (Image.frombytes("I;16B", (48, 48), GREY.astype(">u2").tobytes()), "TIFF", {}),
        "L": (low, "PNG", {}),
        "LA": (Image.merge("LA", [low, shown]), "PNG", {}),
        "RGBA": (Image.merge("RGBA", [low, low, low, shown]), "PNG", {}),
        "palette": (low.convert("P"), "PNG", {}),
        "palette with one transparent colour": (low.convert("P"), "PNG", {"transparency": 3}),
        "palette with transparency": (low.convert("P"), "PNG", {"transparency": bytes(range(256))}),
        "TIFF in CMYK": (
            Image.merge("CMYK", [Image.fromarray(255 - UPPER)] * 3 + [low.point(lambda _: 0)]),
            "TIFF",
            {},
        ),
    }[kind]
    return encoded(image, form, **given)


GREYS = [
    "16-bit PNG", "16-bit TIFF", "16-bit TIFF, big-endian", "16-bit PGM", "12-bit PGM", "L", "LA", "RGBA", "palette",
    "palette with one transparent colour", "palette with transparency", "TIFF in CMYK",
]  # fmt: skip


@pytest.mark.parametrize("kind", GREYS)
def test_every_mode_becomes_the_same_eight_bits_by_every_decoder_and_in_packs(kind: str):
    data = grey_in(kind)
    draw = fixed(Window((0, 0, 48, 48), (48, 48)))
    for decode in decoding.DECODERS:
        assert np.array_equal(view(data, 48, draw, decode).numpy(), UPPER[..., None].repeat(3, 2)), decode
    on_a_device = Undecoded(1, 48)
    on_a_device.take(0, data, draw)
    assert np.array_equal(on_a_device.whole().views[0].numpy(), UPPER[..., None].repeat(3, 2))
    assert np.array_equal(square(Image.open(io.BytesIO(data)), 48), UPPER[..., None].repeat(3, 2))
    part = view(data, 20, fixed(Window((7, 5, 27, 25), (20, 20))), "turbo").numpy()
    assert np.array_equal(part[..., 1], UPPER[5:25, 7:27])


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_numbers_without_a_known_white_are_refused_by_name(dtype: type):
    data = encoded(Image.fromarray(GREY.astype(dtype)), "TIFF")
    for decode in decoding.DECODERS:
        with pytest.raises(ValueError, match=r"numbers of 32 bits \(mode [FI]\).*save it with 8 or 16 bits"):
            view(data, 48, fixed(Window((0, 0, 48, 48), (48, 48))), decode)


@pytest.mark.worlds
@given(st.integers(1, 30_000), st.integers(1, 30_000), st.integers(1, 512))
def test_no_shape_of_an_image_takes_more_than_eight_squares(width: int, height: int, size: int):
    window = evaluation_window(width, height, size)
    left, upper, right, lower = window.region
    short = round(size / 0.875)
    assert min(window.resized) == short
    assert max(window.resized) <= 8 * short
    assert (left, upper) == (width - right, height - lower), "the middle"
    if max(width, height) <= 8 * min(width, height):
        assert window.region == (0, 0, width, height)
    assert min(window.corner) >= 0
    assert all(corner + size <= side for corner, side in zip(window.corner, window.resized, strict=True))


@pytest.mark.parametrize("shape", [(3, 700), (700, 3), (1, 9), (5, 41)])
def test_of_a_thread_of_pixels_the_middle_is_seen_as_ever(shape: tuple[int, int]):
    """Beside the whole image resized and cropped."""
    ramp = np.linspace(0, 255, shape[0] * shape[1]).reshape(shape).astype(np.uint8)
    data = encoded(Image.fromarray(ramp), "PNG")
    short = min(shape)
    wide, tall = round(shape[1] * 32 / short), round(shape[0] * 32 / short)
    whole = Window((0, 0, shape[1], shape[0]), (wide, tall), ((wide - 28) // 2, (tall - 28) // 2))
    expected = by_hand(data, 28, whole).astype(int)
    for decode in decoding.DECODERS:
        found = view(data, 28, functools.partial(evaluation_window, size=28), decode).numpy()
        assert np.abs(found - expected).max() <= 4


@pytest.mark.parametrize("crop", [0.875, 0.95, 1.0])
def test_a_test_sees_so_much_of_the_short_side(crop):
    window = evaluation_window(500, 400, 224, crop)
    short = round(224 / crop)
    assert min(window.resized) == short
    assert window.corner[1] == round((short - 224) / 2)
    left, upper, right, lower = centre_box(256, crop)
    assert right - left == lower - upper == round(256 * crop)
    assert upper == (256 - round(256 * crop)) // 2
