"""Picture files are read with the look that a viewer shows."""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from marble_cli.pictures import picture_size, read_picture
from tests.rewards.picture_files import chunk, pixels, png, saved, written

ORIENTATION = 0x0112


# What a viewer makes of stored rows, as numpy has it; EXIF 2.32, table of orientation.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", TURNS)
def test_a_picture_is_rotated_by_its_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :16] = (255, 0, 0)
    stored[8:, :8] = (0, 0, 255)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(suffix, {})
    file = saved(tmp_path, Image.fromarray(stored), f"a.{suffix}", exif=exif, **options)
    expected = torch.from_numpy(TURNS[orientation](stored).copy()).permute(2, 0, 1)
    picture = read_picture(file)
    assert picture.shape == expected.shape
    assert picture_size(file.read_bytes(), "a") == (picture.shape[2], picture.shape[1])
    assert (picture.int() - expected.int()).abs().max() <= (8 if suffix == "jpg" else 0)
    assert picture.is_contiguous()


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_invalid_orientation_is_ignored(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = saved(tmp_path, Image.new("RGB", (4, 2)), "a.png", exif=exif)
    assert read_picture(file).shape == (3, 2, 4)
    assert picture_size(file.read_bytes(), "a") == (4, 2)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0garbage!", b"\xff" * 40])
def test_damaged_exif_is_ignored(tmp_path: Path, exif: bytes) -> None:
    file = saved(tmp_path, Image.new("RGB", (4, 2), (1, 2, 3)), "a.png", exif=exif)
    assert pixels(read_picture(file)) == [[1, 2, 3]] * 8


WHITE, RED = [255, 255, 255], [200, 0, 0]


PALETTE = chunk(b"PLTE", bytes([*RED, 9, 9, 9]))


@pytest.mark.parametrize(
    ("mode", "clear", "half", "solid"),
    [
        ("RGBA", (200, 0, 0, 0), (200, 0, 0, 128), (200, 0, 0, 255)),
        ("LA", (100, 0), (100, 128), (100, 255)),
    ],
)
@pytest.mark.parametrize("suffix", ["png", "webp", "tiff", "tga"])
def test_transparent_pixels_are_white(
    tmp_path: Path, suffix: str, mode: str, clear: Any, half: Any, solid: Any
) -> None:
    image = Image.new(mode, (3, 1))
    for place, color in enumerate((clear, half, solid)):
        image.putpixel((place, 0), color)
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    shown = pixels(read_picture(saved(tmp_path, image, f"a.{suffix}", **options)))
    own = [200, 0, 0] if mode == "RGBA" else [100] * 3
    assert shown[0] == WHITE
    assert shown[1] == pytest.approx([(c * 128 + 255 * 127) / 255 for c in own], abs=1)
    assert shown[2] == own


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (png(2, 8, 3, b"\0\1", PALETTE, chunk(b"tRNS", b"\0")), [WHITE, [9, 9, 9]]),
        (png(2, 8, 3, b"\0\1", PALETTE, chunk(b"tRNS", b"\xff\0")), [RED, WHITE]),
        (png(2, 4, 3, b"\x01", PALETTE, chunk(b"tRNS", b"\0")), [WHITE, [9, 9, 9]]),
        (png(2, 8, 2, bytes([9, 8, 7, *RED]), chunk(b"tRNS", struct.pack(">3H", 9, 8, 7))), [WHITE, RED]),
        (png(2, 8, 0, b"\3\x09", chunk(b"tRNS", b"\0\3")), [WHITE, [9] * 3]),
        (png(2, 4, 0, b"\x37", chunk(b"tRNS", b"\0\3")), [WHITE, [119] * 3]),
        (png(4, 2, 0, b"\x1b", chunk(b"tRNS", b"\0\1")), [[0] * 3, WHITE, [170] * 3, WHITE]),
        (png(2, 1, 0, b"\x40", chunk(b"tRNS", b"\0\0")), [WHITE, WHITE]),
        (
            png(2, 16, 0, struct.pack(">HH", 1000, 0), chunk(b"tRNS", struct.pack(">H", 1000))),
            [WHITE, [0] * 3],
        ),
        (
            png(
                2,
                16,
                2,
                struct.pack(">6H", 9000, 1, 2, 0, 0, 0),
                chunk(b"tRNS", struct.pack(">3H", 9000, 1, 2)),
            ),
            [WHITE, [0] * 3],
        ),
        (png(2, 16, 4, struct.pack(">4H", 0, 0, 25700, 65535)), [WHITE, [100] * 3]),
        (png(2, 16, 6, struct.pack(">8H", 0, 0, 0, 0, 51400, 0, 0, 65535)), [WHITE, RED]),
    ],
)
def test_a_transparent_value_of_a_png_is_white(tmp_path: Path, data: bytes, shown: list[list[int]]) -> None:
    assert pixels(read_picture(written(tmp_path, data))) == shown


def test_transparent_palettes_of_tiff_and_gif_are_white(tmp_path: Path) -> None:
    image = Image.new("PA", (1, 1), (0, 0))
    assert pixels(read_picture(saved(tmp_path, image, "a.tiff"))) == [WHITE]
    clear = Image.new("P", (1, 1))
    clear.putpalette([*RED, 9, 9, 9])
    assert pixels(read_picture(saved(tmp_path, clear, "a.gif", transparency=0))) == [WHITE]


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (png(3, 16, 0, struct.pack(">3H", 0, 25700, 65535)), [0, 100, 255]),
        (b"P5 3 1 65535\n" + struct.pack(">3H", 0, 25700, 65535), [0, 100, 255]),
        (b"P5 3 1 1023\n" + struct.pack(">3H", 0, 512, 1023), [0, 128, 255]),
    ],
)
def test_sixteen_bits_of_grey_are_scaled(tmp_path: Path, data: bytes, shown: list[int]) -> None:
    assert pixels(read_picture(written(tmp_path, data))) == [[value] * 3 for value in shown]


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_sixteen_bits_of_tiff_are_scaled(tmp_path: Path, mode: str) -> None:
    values = np.array([[0, 25700, 65535]], ">u2" if mode.endswith("B") else "<u2")
    image = Image.frombytes(mode, (3, 1), values.tobytes())
    assert pixels(read_picture(saved(tmp_path, image, "a.tiff"))) == [[0] * 3, [100] * 3, WHITE]


def test_sixteen_bits_of_inverted_tiff_are_scaled(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 25700, 65535]], np.uint16))
    file = saved(tmp_path, image, "a.tiff", tiffinfo={262: 0})
    assert pixels(read_picture(file)) == [WHITE, [155] * 3, [0] * 3]


def test_sixteen_bits_of_colour_are_scaled(tmp_path: Path) -> None:
    row = struct.pack(">6H", 51400, 0, 65535, 257, 25700, 514)
    for data in (png(2, 16, 2, row), b"P6 2 1 65535\n" + row):
        assert pixels(read_picture(written(tmp_path, data))) == [[200, 0, 255], [1, 100, 2]]


@pytest.mark.parametrize(
    ("mode", "color", "shown", "suffix"),
    [
        ("CMYK", (0, 255, 255, 0), [255, 0, 0], "tiff"),
        ("CMYK", (0, 0, 0, 255), [0, 0, 0], "jpg"),
        ("YCbCr", (76, 85, 255), [254, 0, 0], "tiff"),
        ("LAB", (255, 128, 128), WHITE, "tiff"),
        ("LAB", (0, 128, 128), [0, 0, 0], "tiff"),
        ("LAB", (128, 128, 128), [119, 119, 119], "tiff"),
        ("1", 1, WHITE, "png"),
        ("L", 7, [7, 7, 7], "png"),
        ("P", 7, None, "png"),
        ("RGBX", (1, 2, 3, 0), [1, 2, 3], "tiff"),
    ],
)
def test_other_colour_spaces_are_converted(
    tmp_path: Path, mode: str, color: Any, shown: list[int] | None, suffix: str
) -> None:
    (found,) = pixels(read_picture(saved(tmp_path, Image.new(mode, (1, 1), color), f"a.{suffix}")))
    if shown is not None:
        assert found == pytest.approx(shown, abs=3)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_the_first_of_several_pictures_is_read(tmp_path: Path, suffix: str) -> None:
    first, second = Image.new("RGB", (4, 4), (0, 0, 200)), Image.new("RGB", (4, 4), (0, 200, 0))
    options = {"lossless": True} if suffix == "webp" else {}
    file = saved(tmp_path, first, f"a.{suffix}", save_all=True, append_images=[second], **options)
    assert pixels(read_picture(file)) == [[0, 0, 200]] * 16


def test_ordinary_pictures_are_read_byte_for_byte(tmp_path: Path) -> None:
    """What `rewards score` read before, for the pictures that it read rightly."""
    noise = np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    for suffix in ("png", "jpg", "bmp"):
        file = saved(tmp_path, Image.fromarray(noise), f"a.{suffix}")
        assert np.array_equal(
            read_picture(file).permute(1, 2, 0), Image.open(io.BytesIO(file.read_bytes())).convert("RGB")
        )
