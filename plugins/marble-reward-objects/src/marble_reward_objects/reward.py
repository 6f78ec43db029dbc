"""The `objects` reward: counts, shapes and colours of the objects in a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from skimage.color import rgb2lab
from skimage.measure import label, regionprops
from torch import Tensor

from marble_cli.rewards.region import region_pixels

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

MAX_SIDE = 128  # pixels; larger pictures are shrunk to this, which is enough for shapes
SPECK = 0.006  # share of the picture's area; smaller patches are no objects
CONTRAST = 12.0  # smallest distance of an object from the ground, in CIE Lab units
PATTERN = 25.0  # largest distance of the two tones of a patterned ground, in CIE Lab units

PALETTE: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((214, 48, 49), (255, 0, 0)),
    "orange": ((238, 125, 30), (255, 150, 0)),
    "yellow": ((240, 196, 25), (255, 240, 0)),
    "green": ((46, 160, 67), (0, 128, 0), (0, 230, 0)),
    "blue": ((45, 96, 214), (0, 0, 255), (0, 130, 240)),
    "purple": ((140, 70, 190), (128, 0, 128)),
    "pink": ((255, 150, 190), (255, 105, 180)),
    "brown": ((120, 72, 36), (139, 69, 19)),
    "black": ((15, 15, 15), (45, 45, 45)),
    "grey": ((110, 110, 110), (160, 160, 160)),
    "white": ((250, 250, 250),),
}
SATURATIONS = (1.0, 0.75, 0.5)
LIGHTNESS_WEIGHT = 0.5  # shading changes lightness more than hue

SHAPES = ("circle", "square", "triangle", "diamond")
# Bounds of `_symmetry`. An equilateral triangle has a threefold symmetry of 0.66, a flat one of 0.55.
TRIANGULAR = 0.33  # more is a triangle
UNEVEN = 0.2  # a larger threefold symmetry is no other known shape
ROUND = 0.13  # a smaller fourfold symmetry is a circle; a square has 3/7, with rounded corners less
ELONGATED = 0.35  # more is neither circle nor square; an ellipse with axes of 3 : 2 has 5/13
SOLID = 0.85  # smallest share of its convex hull that a shape fills


@dataclass(frozen=True)
class Thing:
    """One object by the names of its colour and shape; an unknown shape is "other"."""

    color: str
    shape: str


class Objects:
    """Agreement of the picture's objects with the prompt's in count, colour and shape: 0 to 1."""

    requires: ClassVar = {
        "include": [{"class": str, "color": str, "count": int}],
        "region": ([float], None),
    }
    range = (0.0, 1.0)
    license = "Apache-2.0"
    citation = "in the manner of GenEval, arXiv 2310.11513"

    def __call__(self, images: Tensor, metadata: Sequence[Mapping[str, Any]]) -> list[float | ValueError]:
        """Score a batch.

        Args:
            images: uint8 [B, 3, H, W].
            metadata: B mappings, each with `include`, a list of {"class": shape, "color": name, "count": n}.
                With `region`, [left, top, right, bottom] as shares of the picture's sides, only this part of
                the picture counts, and `include` may be empty: nothing is to be there.

        Returns:
            B scores in [0, 1]. A ValueError takes the place of a score if `region` or `include` is malformed,
            or names a shape or colour that this reward does not know.
        """
        return [self._score(*row) for row in zip(images, metadata, strict=True)]

    @staticmethod
    def examples() -> list[Any]:
        """Return pairs of pictures for two red squares: above one, two blue ones, and an empty picture."""
        metadata = {"include": [{"class": "square", "color": "red", "count": 2}]}
        rows: tuple[list[str], ...] = (["red", "red"], ["red"], ["blue", "blue"], [])
        right, *wrong = ((_paint_squares(colors), "two red squares", metadata) for colors in rows)
        return [(right, other) for other in wrong]

    def _score(self, image: Tensor, metadata: Mapping[str, Any]) -> float | ValueError:
        region, include = metadata.get("region"), metadata["include"]
        try:
            part = image if region is None else image[:, *region_pixels(region, *image.shape[1:])]
            wanted = [] if region is not None and include == [] else _read_include(include)
        except ValueError as error:
            return error
        found = find_objects(part)
        return agreement(found, wanted) if wanted else float(not found)


def _paint_squares(colors: Sequence[str]) -> Tensor:
    """Paint squares of these colours side by side: uint8 [3, 64, 64]."""
    picture = torch.full((3, 64, 64), 232, dtype=torch.uint8)
    for left, color in zip((8, 38), colors, strict=False):
        color_values = torch.tensor(PALETTE[color][0], dtype=torch.uint8)
        picture[:, 22:42, left : left + 20] = color_values[:, None, None]
    return picture


def _read_include(include: Any) -> list[Thing]:
    """Return the objects that a prompt requires.

    Raises:
        ValueError: `include` is malformed, or names an unknown shape or colour.
    """
    if not isinstance(include, Sequence) or isinstance(include, str) or not include:
        raise ValueError(f"metadata include={include!r}: expected a list of objects")
    things = []
    for entry in include:
        if not isinstance(entry, Mapping):
            raise ValueError(f"metadata include has {entry!r}: expected a mapping")
        for key in ("class", "color", "count"):
            if key not in entry:
                raise ValueError(f"metadata include has {dict(entry)}: its key {key!r} is missing")
        shape, color, count = entry["class"], entry["color"], entry["count"]
        if shape not in SHAPES:
            raise ValueError(f"metadata include class={shape!r}: this reward knows {', '.join(SHAPES)}")
        if color not in PALETTE:
            raise ValueError(f"metadata include color={color!r}: this reward knows {', '.join(PALETTE)}")
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"metadata include count={count!r}: expected a whole number from 1 on")
        things += [Thing(color, shape)] * count
    return things


def agreement(found: Sequence[Thing], wanted: Sequence[Thing]) -> float:
    """Compare the objects in a picture with those of the prompt: 0 to 1.

    Objects are paired one to one with the largest sum of credits; a pair earns 1/2 for the colour and 1/2 for
    the shape. The sum is divided by the larger of the two counts, so missing and surplus objects cost the
    same.
    """
    if not found or not wanted:
        return 0.0
    credits = np.array(
        [[((a.color == b.color) + (a.shape == b.shape)) / 2 for b in wanted] for a in found], np.float64
    )
    rows, columns = linear_sum_assignment(credits, maximize=True)
    return float(credits[rows, columns].sum()) / max(len(found), len(wanted))


def find_objects(image: Tensor) -> list[Thing]:
    """Find the objects in an image uint8 [3, H, W], in reading order of their first pixels."""
    rgb = _working_copy(image)
    lab = rgb2lab(rgb)
    distance = _distance_from_ground(lab)
    return [_describe(mask, distance, lab) for mask in _objects(distance)]


def _working_copy(image: Tensor) -> Array:
    """Convert an image to [h, w, 3] float64 in [0, 1] whose longer side has at most `MAX_SIDE` pixels."""
    picture = image.double()[None] / 255
    longest = max(image.shape[1:])
    if longest > MAX_SIDE:
        size = [max(1, round(side * MAX_SIDE / longest)) for side in image.shape[1:]]
        picture = torch.nn.functional.interpolate(picture, size, mode="area")
    return np.asarray(picture[0].permute(1, 2, 0))


def _distance_from_ground(lab: Array) -> Array:
    """Measure the distance of each pixel [h, w] from the ground in CIE Lab units.

    The ground may have two tones (stripes, dots). The line between the two is ground as well, since
    antialiased pixels lie on it. The tones are those of the picture's frame, whose width is 1/16 of a side.
    """
    height, width = lab.shape[:2]
    frame = np.ones((height, width), bool)
    rim = max(1, round(min(height, width) / 16))
    frame[rim:-rim, rim:-rim] = False
    first, second = _two_tones(lab[frame])
    along = second - first
    length = float(along @ along)
    place = np.clip((lab - first) @ along / length, -0.15, 1.15) if length else np.zeros((height, width))
    return np.asarray(np.linalg.norm(lab - first - place[..., None] * along, axis=-1))


def _two_tones(pixels: Array) -> tuple[Array, Array]:
    """Find the ground's two tones [3] in the frame's pixels [n, 3]; they are equal on a plain ground."""
    first = np.median(pixels, axis=0)
    away = np.linalg.norm(pixels - first, axis=1)
    second = pixels[np.argsort(away, kind="stable")[int(0.9 * len(pixels))]]
    for _ in range(4):
        nearer_second = np.linalg.norm(pixels - second, axis=1) < np.linalg.norm(pixels - first, axis=1)
        if nearer_second.all() or not nearer_second.any():
            return first, first
        first, second = np.median(pixels[~nearer_second], axis=0), np.median(pixels[nearer_second], axis=0)
    if np.linalg.norm(first - second) > PATTERN:
        # The second tone is no pattern: an object or some scenery reaches the frame.
        larger = second if nearer_second.mean() > 0.5 else first
        return larger, larger
    return first, second


def _objects(distance: Array) -> list[Mask]:
    """Return masks [h, w] of the objects, given the distance [h, w] from the ground.

    Each patch of high contrast is cut again at half of its own contrast. There an antialiased edge runs, and
    the cut separates objects that a faint bridge joins.
    """
    return [
        part
        for patch in _patches(distance > CONTRAST)
        for part in _patches(patch & (distance > np.quantile(distance[patch], 0.8) / 2))
    ]


def _patches(mask: Mask) -> list[Mask]:
    """Return the connected parts of a mask in reading order of their first pixels, without specks."""
    labels = label(mask, connectivity=1)  # type: ignore[no-untyped-call]
    areas = np.bincount(labels.ravel())
    smallest = max(9, SPECK * mask.size)
    return [labels == number for number in range(1, len(areas)) if areas[number] >= smallest]


def _describe(mask: Mask, distance: Array, lab: Array) -> Thing:
    inner = mask & (distance >= np.median(distance[mask]))
    return Thing(_color(np.median(lab[inner], axis=0)), _shape(mask))


def _anchors() -> tuple[list[str], Array]:
    """Return names and CIE Lab colours [n, 3] of every palette colour at every saturation."""
    names, colors = [], []
    for name, shades in PALETTE.items():
        for shade in shades:
            value = max(shade)
            for saturation in SATURATIONS:
                names.append(name)
                colors.append([(value - (value - channel) * saturation) / 255 for channel in shade])
    return names, np.asarray(rgb2lab(np.array(colors)[None])[0])


NAMES, ANCHORS = _anchors()


def _color(lab: Array) -> str:
    """Name a CIE Lab colour [3] by the nearest anchor."""
    difference = (ANCHORS - lab) * (LIGHTNESS_WEIGHT, 1.0, 1.0)
    return NAMES[int(np.linalg.norm(difference, axis=1).argmin())]


def _shape(mask: Mask) -> str:
    """Name the shape of a mask; "other" if it is none of `SHAPES`."""
    elongation, threefold, fourfold = _symmetry(mask)
    region = regionprops(mask.astype(np.uint8))[0]  # type: ignore[no-untyped-call]
    if region.solidity < SOLID:
        return "other"
    if threefold > TRIANGULAR:
        return "triangle"
    if threefold > UNEVEN or elongation > ELONGATED:
        return "other"
    if abs(fourfold) < ROUND:
        return "circle"
    return "diamond" if fourfold > 0 else "square"


def _symmetry(mask: Mask) -> tuple[float, float, float]:
    """Compute complex moments of a mask about its centroid: elongation, threefold and fourfold symmetry.

    With z = x + iy from the centroid they are |sum z^2| / sum |z|^2, |sum z^3| / sum |z|^3 and Re(sum z^4) /
    sum |z|^4. The last is -3/7 for a square on its side and 3/7 for one on its corner; all are 0 for a disc,
    and none depends on the shape's size.
    """
    rows, columns = np.nonzero(mask)
    z = (columns - columns.mean()) + 1j * (rows - rows.mean())
    moment = [(z**order).sum() / (np.abs(z) ** order).sum() for order in (2, 3, 4)]
    return float(abs(moment[0])), float(abs(moment[1])), float(moment[2].real)
