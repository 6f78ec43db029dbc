"""Read the size of images in pixels: one number for a square, WIDTHxHEIGHT for a rectangle."""

import math
import re
from collections.abc import Sequence
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


def with_sides(value: int | str, width: int | None, height: int | None) -> int | str:
    """Return a resolution with other sides, of those that are given, in its one spelling."""
    read = read_resolution(value)
    return canonical(f"{width or read.width}x{height or read.height}")


def is_resolution(value: int | str) -> bool:
    """Tell whether a value is a resolution, of `LEAST` pixels a side at least."""
    try:
        read = read_resolution(value)
    except ValueError:
        return False
    return min(read.width, read.height) >= LEAST


def nearest_aspect(width: int, height: int, buckets: Sequence[int | str]) -> int | str:
    """Return the first of `buckets` whose aspect ratio is nearest to that of a picture, by their quotient."""

    def distance(bucket: int | str) -> float:
        size = read_resolution(bucket)
        return abs(math.log(width * size.height / (height * size.width)))

    return min(buckets, key=distance)


EXPECTED = f"at least {LEAST} pixels a side, as 512 or as 768x512 (width x height)"
RESOLUTION = Range(is_resolution, EXPECTED)
RESOLUTIONS = Range(
    lambda values: bool(values) and all(map(is_resolution, values)),
    "a list such as [512,640x416,416x640], of at least 8 pixels a side",
)
