"""Read a picture file as rewards see pictures, the way a viewer shows it, or say why that cannot be."""

import re
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from marble_cli.errors import RequestError

PIXELS = 89_478_485  # at most, as Pillow warns of: a quarter of a GiB of RGBA
EXPECTED = "Expected a PNG, JPEG, WebP, GIF, BMP or TIFF file"
RUNS_A_PROGRAM = ("EPS", "WMF", "MPEG")  # formats that Pillow hands to another program or to none
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BITS, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF


def read_picture(path: Path) -> Tensor:
    """Read the picture in a file; of an animation or several pages, the first.

    It is turned as its EXIF orientation says; what is transparent lies on white; 16 bits are scaled to 8.
    Colour profiles are not applied.

    Returns:
        uint8 [3, H, W].

    Raises:
        RequestError: naming the file: there is none, or it is no picture, is cut short, has too many pixels,
            or is of a mode without a scale.
    """
    shown = str(path) if str(path).isprintable() else ascii(str(path))
    try:
        if path.exists() and not path.is_file():
            raise RequestError(f"{shown} is no file. {EXPECTED}.")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _rgb(image, shown)
    except RequestError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        pixels = int(found[1]) if (found := re.search(r"\((\d+) pixels\)", str(error))) else 0
        raise RequestError(_too_large(shown, pixels)) from error
    except UnidentifiedImageError as error:
        empty = " is empty" if not path.stat().st_size else " is no picture that can be read"
        raise RequestError(f"{shown}{empty}. {EXPECTED}; convert others, such as SVG and HEIC.") from error
    except OSError as error:
        raise RequestError(f"{shown} cannot be read: {error.strerror or error}. {EXPECTED}.") from error
    except Exception as error:  # Pillow's decoders raise what they like
        raise RequestError(f"{shown} cannot be read: {type(error).__name__}: {error}. {EXPECTED}.") from error


def _too_large(shown: str, pixels: int) -> str:
    size = f"{pixels:,} pixels" if pixels else "too many pixels"
    return f"{shown} has {size}; at most {PIXELS:,} are read. Make the picture smaller."


def _rgb(image: Image.Image, shown: str) -> Tensor:
    """An open picture's pixels, uint8 [3, H, W]."""
    if image.format in RUNS_A_PROGRAM:
        raise RequestError(f"{shown} is {image.format}, which is not read. {EXPECTED}.")
    if 0 in image.size:
        raise RequestError(f"{shown} has no pixels: {image.width} x {image.height}. {EXPECTED}.")
    if image.width * image.height > PIXELS:
        raise RequestError(_too_large(shown, image.width * image.height))
    _scale_transparency(image)
    upright = UPRIGHT.get(_orientation(image))
    image.load()
    plain = _on_white(_grey(image, shown))
    if upright is not None:
        plain = plain.transpose(upright)
    return torch.from_numpy(np.array(plain)).permute(2, 0, 1).contiguous()


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if there is none that can be read, as viewers take it.

    Pillow turns TIFF by itself when it is loaded.
    """
    if image.format == "TIFF":
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # EXIF of any kind of brokenness, which does not make the picture unreadable
        return 1


def _scale_transparency(image: Image.Image) -> None:
    """Give a PNG's transparent value the depth that Pillow gives its pixels: 8 bits, from 2, 4 or 3 x 16."""
    tiles = getattr(image, "tile", ())
    value, layout = image.info.get("transparency"), str(tiles[0][3]) if tiles else ""
    if isinstance(value, int) and layout in ("L;2", "L;4"):
        image.info["transparency"] = value * {"L;2": 85, "L;4": 17}[layout]
    if isinstance(value, tuple) and layout == "RGB;16B":
        image.info["transparency"] = tuple(part >> 8 for part in value)


def _grey(image: Image.Image, shown: str) -> Image.Image:
    """Scale modes of more than 8 bits to grey of 8, with alpha where a value is transparent.

    Raises:
        RequestError: nothing says which value is white.
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
    """The value of white in a picture of more than 8 bits; None if nothing says."""
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(BITS, (16,))
        return int(2 ** bits[0] - 1)
    return 65535 if image.mode == "I" and image.format in ("PNG", "PPM") else None


def _on_white(image: Image.Image) -> Image.Image:
    """A picture as RGB, what is transparent on white."""
    if image.mode == "LAB":
        from PIL import ImageCms

        return ImageCms.profileToProfile(  # type: ignore[return-value]
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    if image.mode not in ("RGBA", "LA", "PA", "RGBa", "La") and "transparency" not in image.info:
        return image.convert("RGB")
    ground = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
