"""Read the `region` of a prompt's metadata, the part of a picture that an edit is about."""

import math
from collections.abc import Sequence


def region_pixels(region: Sequence[float], height: int, width: int) -> tuple[slice, slice]:
    """Return the rows and the columns of a picture that a region touches.

    Args:
        region: [left, top, right, bottom] as shares of the picture's sides.
        height: of the picture, in pixels.
        width: of the picture, in pixels.

    Raises:
        ValueError: the region is malformed.
    """
    if len(region) != 4 or not 0 <= region[0] < region[2] <= 1 or not 0 <= region[1] < region[3] <= 1:
        raise ValueError(f"metadata region={region}: expected [left, top, right, bottom] in [0, 1]")
    left, top, right, bottom = region
    rows = slice(math.floor(top * height), math.ceil(bottom * height))
    return rows, slice(math.floor(left * width), math.ceil(right * width))
