"""Paint the scenes of the tiny world as antialiased pictures of 64 pixels."""

import colorsys
import math
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from scripts.tiny.world import GROUNDS, PALETTE, SOURCES, Scene, caption, corrupt, random_scene

RESOLUTION = 64
SUPERSAMPLE = 3
SIDE = RESOLUTION * SUPERSAMPLE
UNIT = SIDE / 64  # one pixel of the finished picture

HALF_SIZES = {"": 21, "small": 14, "large": 28}  # half the edge of a thing's box
ROWS = {1: (32,), 2: (18, 46)}  # height of each row of objects, by the number of rows
DIGITS = (21.5, 42.5)  # horizontal centres of a sign's digits
DARK_INK, WHITE_INK = (40, 36, 30), (252, 252, 252)
DARKEST_SUM = 300  # grounds up to this sum of channels get a lighter pattern, others a darker one

Box = tuple[float, float, float, float]  # left, top, right, bottom
Color = tuple[int, int, int]  # red, green, blue, 0 to 255

# Parts of each thing, painted in order with its main or its trim colour, on a square from 0,0 to 10,10. Four
# numbers after "oval" are a box; after "poly" come the corners.
Part = tuple[str, str, str]
# Centres; 1.2566 is a fifth of a turn.
PETALS = tuple((5 + 3 * math.sin(turn * 1.2566), 5 - 3 * math.cos(turn * 1.2566)) for turn in range(5))
THING_PARTS: dict[str, tuple[Part, ...]] = {
    "banner": (("main", "poly", "1,1 9,1 9,8 5,6 1,8"), ("trim", "poly", "1,1 9,1 9,3 1,3")),
    "kite": (("main", "poly", "5,0 9,4 5,10 1,4"), ("trim", "poly", "5,0 9,4 5,4")),
    "tower": (("main", "poly", "3,2 7,2 8,10 2,10"), ("trim", "poly", "2,0 8,0 8,3 2,3")),
    "house": (("main", "poly", "1,4 9,4 9,10 1,10"), ("trim", "poly", "0,4 5,0 10,4")),
    "boat": (("main", "poly", "0,7 10,7 8,10 2,10"), ("trim", "poly", "5,0 9,6 5,6")),
    "tree": (("main", "poly", "5,0 9,7 1,7"), ("trim", "poly", "4,7 6,7 6,10 4,10")),
    "flower": (
        *(("main", "oval", f"{x - 2.1!r},{y - 2.1!r} {x + 2.1!r},{y + 2.1!r}") for x, y in PETALS),
        ("trim", "oval", "3.4,3.4 6.6,6.6"),
    ),
    "heart": (
        ("main", "oval", "0.5,1 5.4,6"),
        ("main", "oval", "4.6,1 9.5,6"),
        ("main", "poly", "0.9,4.7 9.1,4.7 5,10"),
        ("trim", "oval", "2,2.2 4,4.2"),
    ),
    "ball": (("main", "oval", "1,1 9,9"), ("trim", "poly", "1.2,4 8.8,4 8.8,6 1.2,6")),
    "cup": (
        ("main", "oval", "6,3 10,8"),
        ("trim", "oval", "7,4.2 9,6.8"),
        ("main", "poly", "1,1 7.5,1 7,10 1.5,10"),
    ),
    "fish": (("main", "oval", "0,2.5 7.5,7.5"), ("trim", "poly", "6.5,5 10,2 10,8")),
    "arrow": (("trim", "poly", "0,3.5 5.5,3.5 5.5,6.5 0,6.5"), ("main", "poly", "5,1 10,5 5,9")),
}
SHAPE_CORNERS = {
    "square": "0.6,0.6 9.4,0.6 9.4,9.4 0.6,9.4",
    "triangle": "5,0 10,9.6 0,9.6",
    "diamond": "5,-0.6 10.6,5 5,10.6 -0.6,5",
}
BADGE_CORNERS = "1.2,0 8.8,0 10,5 8.8,10 1.2,10 0,5"


class Painter:
    """Paints scenes as uint8 [64, 64, 3] arrays."""

    def __init__(self) -> None:
        font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
        self.font = ImageFont.truetype(str(font), int(34 * SIDE / 64))

    def __call__(self, scene: Scene) -> np.ndarray:
        """Paint a scene at three times the resolution and average it down."""
        image = Image.new("RGB", (SIDE, SIDE))
        draw = ImageDraw.Draw(image)
        paint_ground(draw, scene)
        match scene.source:
            case "general":
                paint_thing(draw, scene)
            case "text":
                paint_sign(draw, scene, self.font)
            case _:
                paint_objects(draw, scene)
        return np.asarray(image.resize((RESOLUTION, RESOLUTION), Image.Resampling.BOX))


def shade(color: Color, saturation: float) -> Color:
    """Scale the saturation of a colour."""
    hue, own_saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in color))
    return from_hsv(hue, own_saturation * saturation, value)


def from_hsv(hue: float, saturation: float, value: float) -> Color:
    """Convert a colour from numbers in [0, 1]."""
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def paint_ground(draw: ImageDraw.ImageDraw, scene: Scene) -> None:
    """Fill the picture with the prompt's ground or the style's tint, and paint the pattern on it."""
    style = scene.style
    color = GROUNDS[scene.ground] if scene.ground else from_hsv(style.hue, style.chroma, 0.95)
    draw.rectangle((0, 0, SIDE, SIDE), fill=color)
    light = sum(color) > DARKEST_SUM
    tone = tuple(int(channel * 0.88) if light else channel + 26 for channel in color)
    period = SIDE // 8
    if style.pattern == "stripes":
        for left in range(0, SIDE, period):
            draw.rectangle((left, 0, left + period // 2 - 1, SIDE), fill=tone)
    if style.pattern == "dots":
        radius = period // 4
        for x in range(period // 2, SIDE, period):
            for y in range(period // 2, SIDE, period):
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tone)


def corners(box: Box, points: str) -> list[tuple[float, float]]:
    """Place `points` ("x,y x,y", on a square from 0,0 to 10,10) in a box of the picture."""
    left, top, right, bottom = box
    places = [tuple(float(number) / 10 for number in point.split(",")) for point in points.split()]
    return [(left + x * (right - left), top + y * (bottom - top)) for x, y in places]


def paint_thing(draw: ImageDraw.ImageDraw, scene: Scene) -> None:
    """Paint the thing of a general scene in the middle."""
    half = HALF_SIZES[scene.size] * UNIT
    box = (SIDE / 2 - half, SIDE / 2 - half, SIDE / 2 + half, SIDE / 2 + half)
    colors = {"main": scene.color, "trim": scene.trim or scene.color}
    for role, kind, points in THING_PARTS[scene.thing]:
        fill = shade(PALETTE[colors[role]], scene.style.saturation)
        if kind == "oval":
            (left, top), (right, bottom) = corners(box, points)
            draw.ellipse((left, top, right, bottom), fill=fill)
        else:
            draw.polygon(corners(box, points), fill=fill)


def paint_sign(draw: ImageDraw.ImageDraw, scene: Scene, font: ImageFont.FreeTypeFont) -> None:
    """Paint the sign of a text scene with its two digits."""
    box = (4 * UNIT, 12 * UNIT, 60 * UNIT, 52 * UNIT)
    fill = shade(PALETTE[scene.color], scene.style.saturation)
    match scene.sign:
        case "sign":
            draw.rounded_rectangle(box, radius=8 * UNIT, fill=fill)
        case "card":
            draw.rectangle(box, fill=fill)
        case "plate":
            draw.ellipse((1 * UNIT, 8 * UNIT, 63 * UNIT, 56 * UNIT), fill=fill)
        case "badge":
            draw.polygon(corners(box, BADGE_CORNERS), fill=fill)
    ink = DARK_INK if scene.color == "yellow" else WHITE_INK
    for digit, x in zip(scene.text, DIGITS, strict=True):
        draw.text((x * UNIT, 32 * UNIT), digit, font=font, fill=ink, anchor="mm")


def paint_objects(draw: ImageDraw.ImageDraw, scene: Scene) -> None:
    """Paint the objects of a compositional scene, each group in a row."""
    for y, group in zip(ROWS[len(scene.objects)], scene.objects, strict=True):
        fill = shade(PALETTE[group.color], scene.style.saturation)
        for index in range(group.count):
            x = 32 + (index - (group.count - 1) / 2) * 20
            paint_shape(draw, group.shape, (x * UNIT, y * UNIT), 8 * UNIT, fill)


def paint_shape(
    draw: ImageDraw.ImageDraw, shape: str, centre: tuple[float, float], radius: float, fill: Color
) -> None:
    """Paint one object; its centre and radius are in pixels of the unfinished picture."""
    x, y = centre
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        draw.ellipse(box, fill=fill)
    else:
        draw.polygon(corners(box, SHAPE_CORNERS[shape]), fill=fill)


def painted_pairs(seed: int, count: int, noise: dict[str, float]) -> tuple[np.ndarray, list[str]]:
    """Draw scenes and paint them, some with a wrong caption.

    Args:
        seed: of all scenes.
        count: of the images; the sources take turns.
        noise: by source, the share of wrong captions.

    Returns:
        Images uint8 [count, 64, 64, 3] and their captions.
    """
    random = np.random.default_rng(seed)
    paint = Painter()
    images = np.empty((count, RESOLUTION, RESOLUTION, 3), np.uint8)
    captions = []
    for index in range(count):
        scene = random_scene(random, SOURCES[index % len(SOURCES)])
        captions.append(caption(scene))
        shown = corrupt(random, scene) if random.uniform() < noise[scene.source] else scene
        images[index] = paint(shown)
    return images, captions
