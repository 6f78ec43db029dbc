"""Picture files as a viewer shows them, or refused by name."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from marble_cli.errors import RequestError
from marble_cli.rewards.pictures import PIXELS, read_picture

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


def saved(folder: Path, image: Image.Image, name: str, **options: Any) -> Path:
    image.save(folder / name, **options)
    return folder / name


def written(folder: Path, data: bytes, name: str = "picture") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def pixels(picture: Tensor) -> list[list[int]]:
    """The colours of a picture, row by row."""
    assert picture.dtype is torch.uint8
    assert picture.ndim == 3
    assert len(picture) == 3
    return picture.flatten(1).T.tolist()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, depth: int, kind: int, row: bytes, *chunks: bytes) -> bytes:
    """A PNG of one row."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(chunks)
        + chunk(b"IDAT", zlib.compress(b"\0" + row))
        + chunk(b"IEND", b"")
    )


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
    assert (picture.int() - expected.int()).abs().max() <= (8 if suffix == "jpg" else 0)
    assert picture.is_contiguous()


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_invalid_orientation_is_ignored(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = saved(tmp_path, Image.new("RGB", (4, 2)), "a.png", exif=exif)
    assert read_picture(file).shape == (3, 2, 4)


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


@pytest.mark.parametrize(
    ("mode", "suffix", "kind"),
    [
        ("F", "tiff", "floating point"),
        ("I", "tiff", "whole numbers of 32 bits"),
        ("F", "pfm", "floating point"),
    ],
)
def test_a_mode_without_a_scale_is_refused(tmp_path: Path, mode: str, suffix: str, kind: str) -> None:
    file = saved(tmp_path, Image.new(mode, (2, 2)), f"a.{suffix}")
    with pytest.raises(RequestError, match=rf"a.{suffix} holds {kind} \(mode {mode}\)"):
        read_picture(file)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_the_first_of_several_pictures_is_read(tmp_path: Path, suffix: str) -> None:
    first, second = Image.new("RGB", (4, 4), (0, 0, 200)), Image.new("RGB", (4, 4), (0, 200, 0))
    options = {"lossless": True} if suffix == "webp" else {}
    file = saved(tmp_path, first, f"a.{suffix}", save_all=True, append_images=[second], **options)
    assert pixels(read_picture(file)) == [[0, 0, 200]] * 16


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"not a picture", "is no picture that can be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "convert others, such as SVG and HEIC"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is no picture that can be read"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "avif"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n", "is EPS, which is not read"),
        (
            b"DDS "
            + struct.pack("<7I", 124, 0x1007, 4, 4, 16, 0, 0)
            + bytes(44)
            + struct.pack("<2I", 32, 4)
            + b"XXXX"
            + bytes(40),
            "dds",
        ),
        (b"P6 0 0 255\n", "is no picture"),
        (b"P5 2 2 255\n\0", "cannot be read"),
        (b"\x89PNG\r\n\x1a\n", "cannot be read|is no picture"),
        (png(2, 8, 2, b"\0"), "cannot be read"),
    ],
)
def test_a_file_that_is_no_picture_is_refused(tmp_path: Path, data: bytes, said: str) -> None:
    name = f"a.{said}" if said in ("dds", "avif") else "a.png"
    with pytest.raises(RequestError, match=name) as told:
        read_picture(written(tmp_path, data, name))
    assert said in ("dds", "avif") or any(part in str(told.value) for part in said.split("|"))
    assert "Expected a PNG, JPEG" in str(told.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff", "gif", "jp2", "tga", "avif"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = saved(tmp_path, Image.fromarray(noise), f"whole.{suffix}").read_bytes()
    file = written(tmp_path, whole[: int(len(whole) * share)], f"cut.{suffix}")
    with pytest.raises(RequestError, match=f"cut.{suffix}"):
        read_picture(file)


def header_only(width: int, height: int) -> bytes:
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", b"")
    )


@pytest.mark.parametrize(
    ("width", "height"), [(20_000, 10_000), (PIXELS + 1, 1), (9_460, 9_460), (2**31 - 1, 2**31 - 1)]
)
def test_too_many_pixels_are_refused(tmp_path: Path, width: int, height: int) -> None:
    with pytest.raises(
        RequestError, match=rf"a.png has {width * height:,} pixels; at most {PIXELS:,} are read"
    ):
        read_picture(written(tmp_path, header_only(width, height), "a.png"))


def test_the_limit_does_not_depend_on_pillow_s_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(RequestError, match="at most 89,478,485 are read"):
        read_picture(written(tmp_path, header_only(20_000, 10_000), "a.png"))


def test_a_decompression_bomb_in_text_is_refused(tmp_path: Path) -> None:
    bomb = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 24)))
    with pytest.raises(RequestError, match="a.png cannot be read"):
        read_picture(written(tmp_path, png(1, 8, 0, b"\0", bomb), "a.png"))


@pytest.mark.parametrize(
    "name",
    [
        "with space.png",
        'quote\'s "x".png',
        "ünï-山.png",
        "no suffix",
        "[markup].png",
        "-o.png",
        "line\nend.png",
        "esc\x1b.png",
    ],
)
def test_files_with_odd_names_are_read_and_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    Image.new("RGB", (1, 1), (1, 2, 3)).save(file, format="PNG")
    assert pixels(read_picture(file)) == [[1, 2, 3]]
    file.write_bytes(b"x")
    with pytest.raises(RequestError) as told:
        read_picture(file)
    assert str(told.value).isprintable()
    assert (name if name.isprintable() else ascii(name)[1:-1]) in str(told.value)


@pytest.mark.parametrize("name", ["absent.png", "a" * 300, "nul\0.png", ".", "absent/a.png", "\udcff.png"])
def test_a_path_that_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match="Expected a PNG"):
        read_picture(tmp_path / name)


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RequestError, match="pipe is no file"):
        read_picture(tmp_path / "pipe")


def test_any_error_of_a_decoder_becomes_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(tmp_path, Image.new("RGB", (1, 1)), "a.png")
    for error in (
        NotImplementedError("x"),
        SyntaxError("x"),
        struct.error("x"),
        IndexError("x"),
        MemoryError(),
        zlib.error("x"),
    ):

        def fail(*rest: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(Image.Image, "convert", fail)
        with pytest.raises(RequestError, match=f"a.png cannot be read: .*{type(error).__name__}"):
            read_picture(file)


def test_ordinary_pictures_are_read_byte_for_byte(tmp_path: Path) -> None:
    """What `rewards score` read before, for the pictures that it read rightly."""
    noise = np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    for suffix in ("png", "jpg", "bmp"):
        file = saved(tmp_path, Image.fromarray(noise), f"a.{suffix}")
        assert np.array_equal(
            read_picture(file).permute(1, 2, 0), Image.open(io.BytesIO(file.read_bytes())).convert("RGB")
        )
