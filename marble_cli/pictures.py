"""Read picture files as the pixels that a viewer shows, and say at which sizes models see them."""

import io
import math
import re
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from marble_cli.errors import RequestError

T = TypeVar("T")
WIDEST = 8  # ratio of the sides of one of several pictures at most; what reaches beyond it is cut off
PIXELS = 89_478_485  # at most; from there on Pillow warns: a quarter of a GiB as RGBA
EXPECTED = "Expected a PNG, JPEG, WebP, GIF, BMP or TIFF file"
RUNS_A_PROGRAM = ("EPS", "WMF", "MPEG")  # formats that Pillow hands to another program
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
OPENING = threading.Lock()  # filters of warnings are the process's
BITS, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF


def read_picture(path: Path) -> Tensor:
    """Read the picture in a file, or the first one of an animation or of several pages.

    The picture is rotated by its EXIF orientation, put on white where it is transparent, and scaled from 16
    bits to 8. Colour profiles are not applied.

    Returns:
        uint8 [3, H, W].

    Raises:
        RequestError: the file is missing, is no picture, is cut short, has too many pixels, or has a mode
            without a scale; the message names it.
    """
    return decode_picture(read_file(path), show_path(path))


def read_file(path: Path) -> bytes:
    """Read the file of a picture.

    Raises:
        RequestError: there is no such file, or it cannot be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise RequestError(f"{show_path(path)} is no file. {EXPECTED}.")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: the name holds a null character
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"{show_path(path)} cannot be read: {reason}. {EXPECTED}.") from error


def show_path(path: Path) -> str:
    """Return a path for a message, without characters that a terminal would obey."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def decode_picture(content: bytes, shown: str) -> Tensor:
    """Decode the content of a picture file as `read_picture` does.

    Args:
        content: of the file.
        shown: its name in messages.
    """
    return _reading(_rgb, content, shown)


def picture_size(content: bytes, shown: str) -> tuple[int, int]:
    """Return the width and height that `decode_picture` gives a picture, by the header alone but for TIFF."""
    return _reading(_upright_size, content, shown)


class Picture(Protocol):
    """A picture that a model starts from; `data.conditions.Condition` is one."""

    @property
    def digest(self) -> str:
        """What tells its content from others'."""

    @property
    def size(self) -> tuple[int, int]:
        """Its own width and height."""

    def pixels(self, width: int, height: int) -> Tensor:
        """Return it at a size, uint8 [3, H, W] on the CPU."""


def seen_sizes(pictures: Sequence[Picture], width: int, height: int) -> list[tuple[int, int]]:
    """Return the (width, height) at which the pictures of a prompt are seen whose images have a size.

    A single picture is seen at the size of the images. Several keep their own shapes, and have at most as
    many pixels as an image.
    """
    if len(pictures) == 1:
        return [(width, height)]
    return [_scaled(*picture.size, width * height) for picture in pictures]


def _scaled(width: int, height: int, most: int) -> tuple[int, int]:
    width, height = min(width, WIDEST * height), min(height, WIDEST * width)
    scale = min(1.0, math.sqrt(most / (width * height)))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _reading(read: Callable[[Image.Image, str], T], content: bytes, shown: str) -> T:
    """Open a picture, read something of it, and explain Pillow's errors."""
    try:
        with _open(content) as image:
            return read(image, shown)
    except RequestError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        match = re.search(r"\((\d+) pixels\)", str(error))
        pixels = int(match[1]) if match else 0
        raise RequestError(_too_large(shown, pixels)) from error
    except UnidentifiedImageError as error:
        empty = " is empty" if not content else " is no picture that can be read"
        raise RequestError(f"{shown}{empty}. {EXPECTED}; convert others, such as SVG and HEIC.") from error
    except OSError as error:
        raise RequestError(f"{shown} cannot be read: {error.strerror or error}. {EXPECTED}.") from error
    except Exception as error:  # Pillow's decoders may raise anything
        raise RequestError(f"{shown} cannot be read: {type(error).__name__}: {error}. {EXPECTED}.") from error


def _open(content: bytes) -> Image.Image:
    """Read the header of a picture; one with too many pixels is an error."""
    with OPENING, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(content))


def _too_large(shown: str, pixels: int) -> str:
    size = f"{pixels:,} pixels" if pixels else "too many pixels"
    return f"{shown} has {size}; at most {PIXELS:,} are read. Make the picture smaller."


def _rgb(image: Image.Image, shown: str) -> Tensor:
    """Return the pixels of an open picture, uint8 [3, H, W]."""
    _check_header(image, shown)
    _scale_transparency(image)
    upright = UPRIGHT.get(_orientation(image))
    image.load()
    plain = _on_white(_grey(image, shown))
    if upright is not None:
        plain = plain.transpose(upright)
    return torch.from_numpy(np.array(plain)).permute(2, 0, 1).contiguous()


def _upright_size(image: Image.Image, shown: str) -> tuple[int, int]:
    _check_header(image, shown)
    if image.format == "TIFF":
        image.load()  # older versions of Pillow turn it only now
    width, height = image.size
    # From 5 on, orientations have rows and columns exchanged.
    return (height, width) if _orientation(image) >= 5 else (width, height)


def _check_header(image: Image.Image, shown: str) -> None:
    if image.format in RUNS_A_PROGRAM:
        raise RequestError(f"{shown} is {image.format}, which is not read. {EXPECTED}.")
    if 0 in image.size:
        raise RequestError(f"{shown} has no pixels: {image.width} x {image.height}. {EXPECTED}.")
    if image.width * image.height > PIXELS:
        raise RequestError(_too_large(shown, image.width * image.height))


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if there is none or it cannot be read, as viewers do.

    Pillow rotates TIFF itself when it loads one.
    """
    if image.format == "TIFF":
        return 1
    try:
        orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
        return orientation if orientation in UPRIGHT else 1
    except Exception:  # the picture can be read although its EXIF is damaged
        return 1


def _scale_transparency(image: Image.Image) -> None:
    """Scale a PNG's transparent value to 8 bits, from 2, 4 or 3 x 16, as Pillow scales its pixels."""
    tiles = getattr(image, "tile", ())
    value, layout = image.info.get("transparency"), str(tiles[0][3]) if tiles else ""
    if isinstance(value, int) and layout in ("L;2", "L;4"):
        image.info["transparency"] = value * {"L;2": 85, "L;4": 17}[layout]
    if isinstance(value, tuple) and layout == "RGB;16B":
        image.info["transparency"] = tuple(part >> 8 for part in value)


def _grey(image: Image.Image, shown: str) -> Image.Image:
    """Scale a mode of more than 8 bits to 8-bit grey, with alpha where the picture has a transparent value.

    Raises:
        RequestError: the file does not define which value is white.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    white = _white(image)
    if white is None:
        kind = "floating point" if image.mode == "F" else "whole numbers of 32 bits"
        raise RequestError(
            f"{shown} holds {kind} (mode {image.mode}), and nothing says which value is white. "
            "Convert it to 8 or 16 bits."
        )
    values: NDArray[np.float64] = np.asarray(image).astype(np.float64)
    grey = np.rint(values * (255 / white)).clip(0, 255).astype(np.uint8)
    tags = getattr(image, "tag_v2", {})
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        grey = 255 - grey
    if "transparency" not in image.info:
        return Image.fromarray(grey)
    alpha = np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)
    return Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha)))


def _white(image: Image.Image) -> int | None:
    """Return the value of white in a picture of more than 8 bits; None if the file does not define it."""
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(BITS, (16,))
        return int(2 ** bits[0] - 1)
    return 65535 if image.mode == "I" and image.format in ("PNG", "PPM") else None


def _on_white(image: Image.Image) -> Image.Image:
    """Convert a picture to RGB, with white where it is transparent."""
    if image.mode == "LAB":
        from PIL import ImageCms

        return ImageCms.profileToProfile(  # type: ignore[return-value]
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    if image.mode not in ("RGBA", "LA", "PA", "RGBa", "La") and "transparency" not in image.info:
        return image.convert("RGB")
    ground = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
