"""A picture that cannot be read is refused by name, with the reason."""

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from marble_cli.errors import RequestError
from marble_cli.pictures import PIXELS, read_picture
from tests.rewards.picture_files import chunk, pixels, png, saved, written


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
