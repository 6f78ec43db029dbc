"""Read the size of images in pixels: one number for a square, WIDTHxHEIGHT for a rectangle."""

import re
from dataclasses import dataclass

from marble_cli.config.ranges import Range

LEAST = 8
RECTANGLE = re.compile(r"(\d{1,6})x(\d{1,6})")


@dataclass(frozen=True)
class Resolution:
    """The size of an image, in pixels."""

    width: int
    height: int

    @property
    def pixels(self) -> int:
        """Return the number of pixels."""
        return self.width * self.height


def read_resolution(value: int | str) -> Resolution:
    """Read 512 as a square, and 768x512 as 768 pixels wide and 512 high.

    Raises:
        ValueError: the value is neither.
    """
    if not isinstance(value, str):
        return Resolution(value, value)
    if value.isdigit():
        return Resolution(int(value), int(value))
    if (sides := RECTANGLE.fullmatch(value)) is None:
        raise ValueError(f"{value!r} is no size in pixels")
    return Resolution(int(sides[1]), int(sides[2]))


def canonical(value: int | str) -> int | str:
    """Return the one spelling of a resolution: a number if it is a square."""
    read = read_resolution(value)
    return read.width if read.width == read.height else f"{read.width}x{read.height}"


def _is_resolution(value: int | str) -> bool:
    try:
        read = read_resolution(value)
    except ValueError:
        return False
    return min(read.width, read.height) >= LEAST


RESOLUTION = Range(_is_resolution, f"at least {LEAST} pixels a side, as 512 or as 768x512 (width x height)")
