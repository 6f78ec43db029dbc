"""The world of the embedded `tiny` model: what a prompt can ask for, how it is said, how it is drawn.

Three prompt sources: *general* (a thing of some colour on some ground), *text* (a sign with two digits to be
legible), *compositional* (counts, colours and shapes). A `Scene` is a prompt's meaning plus a `Style` that no
prompt mentions (saturation, ground tint and pattern): what rewards can improve without touching the prompt.
"""

import colorsys
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

RESOLUTION = 64
SUPERSAMPLE = 3
SIDE = RESOLUTION * SUPERSAMPLE

PALETTE = {
    "red": (214, 48, 49),
    "green": (46, 160, 67),
    "blue": (45, 96, 214),
    "yellow": (240, 196, 25),
    "purple": (140, 70, 190),
    "orange": (238, 125, 30),
}
GROUNDS = {
    "pale": (240, 240, 238),
    "grey": (176, 178, 182),
    "dark": (58, 60, 70),
    "sandy": (232, 214, 178),
    "mint": (198, 232, 212),
    "rosy": (242, 206, 212),
}
THINGS = (
    "banner", "kite", "tower", "house", "boat", "tree", "flower", "heart", "ball", "cup", "fish", "arrow",
)  # fmt: skip
SIZES = ("", "small", "large")
SIGNS = ("sign", "card", "plate", "badge")
SHAPES = ("circle", "square", "triangle", "diamond")
COUNTS = {1: "a", 2: "two", 3: "three"}
SOURCES = ("general", "text", "compositional")


@dataclass(frozen=True)
class Objects:
    """`count` equal objects of one shape and colour."""

    count: int
    color: str
    shape: str


@dataclass(frozen=True)
class Style:
    """What no prompt mentions: `saturation` in [0.5, 1], a ground tint's hue and chroma, a ground pattern."""

    saturation: float
    hue: float
    chroma: float
    pattern: str


@dataclass(frozen=True)
class Scene:
    """A prompt's meaning; only the fields of its `source` are set."""

    source: str
    style: Style
    color: str = ""
    trim: str = ""
    thing: str = ""
    ground: str = ""
    size: str = ""
    sign: str = ""
    text: str = ""
    objects: tuple[Objects, ...] = ()


def draw_style(random: np.random.Generator) -> Style:
    pattern = str(random.choice(["plain", "stripes", "dots"], p=[0.34, 0.33, 0.33]))
    return Style(random.uniform(0.5, 1.0), random.uniform(), random.uniform(0.0, 0.28), pattern)


def draw_scene(random: np.random.Generator, source: str) -> Scene:
    """A random scene of one source."""

    def pick(options: Iterable[str]) -> str:
        return str(random.choice(list(options)))

    style = draw_style(random)
    if source == "general":
        trim = pick(PALETTE) if random.uniform() < 0.5 else ""
        return Scene(source, style, pick(PALETTE), trim, pick(THINGS), pick(GROUNDS), pick(SIZES))
    if source == "text":
        ground = pick(GROUNDS) if random.uniform() < 0.3 else ""
        return Scene(
            source, style, pick(PALETTE), ground=ground, sign=pick(SIGNS), text=str(random.integers(10, 100))
        )
    groups = [
        Objects(int(random.integers(1, 4)), pick(PALETTE), pick(SHAPES))
        for _ in range(1 if random.uniform() < 0.25 else 2)
    ]
    if len(groups) == 2 and (groups[0].color, groups[0].shape) == (groups[1].color, groups[1].shape):
        groups = groups[:1]
    return Scene(source, style, objects=tuple(groups))


def caption(scene: Scene) -> str:
    """The prompt that asks for `scene`."""
    return _words(scene).replace("a orange", "an orange")


def _words(scene: Scene) -> str:
    if scene.source == "general":
        trim = f" and {scene.trim}" if scene.trim and scene.trim != scene.color else ""
        words = ["a", scene.size, scene.color + trim, scene.thing, "on a", scene.ground, "ground"]
        return " ".join(word for word in words if word)
    if scene.source == "text":
        ground = f" on a {scene.ground} ground" if scene.ground else ""
        return f'a {scene.color} {scene.sign}{ground} that says "{scene.text}"'
    parts = [
        f"{COUNTS[group.count]} {group.color} {group.shape}{'s' if group.count > 1 else ''}"
        for group in scene.objects
    ]
    return " and ".join(parts)


def metadata(scene: Scene) -> dict[str, Any]:
    """What rewards need to know of a prompt: `text` to be read, or GenEval-like `include`."""
    if scene.source == "text":
        return {"text": scene.text}
    if scene.source == "compositional":
        return {"include": [{"class": o.shape, "color": o.color, "count": o.count} for o in scene.objects]}
    return {}


def corrupt(random: np.random.Generator, scene: Scene) -> Scene:
    """A scene as a careless captioner would have mistaken it: what makes the base model improvable."""
    other = draw_scene(random, scene.source)
    if scene.source == "general":
        field = str(random.choice(["color", "thing", "ground", "trim"]))
        return replace(scene, **{field: getattr(other, field)})
    if scene.source == "text":
        digits = list(scene.text)
        place = int(random.integers(0, 2))
        digits[place] = str(random.integers(1, 10))
        if random.uniform() < 0.5:
            digits[1 - place] = str(random.integers(1, 10))
        return replace(scene, text="".join(digits))
    return replace(scene, objects=tuple(_mistaken(random, group) for group in scene.objects))


def _mistaken(random: np.random.Generator, group: Objects) -> Objects:
    draw = random.uniform()
    if draw < 0.5:
        return replace(group, count=int(random.choice([c for c in COUNTS if c != group.count])))
    if draw < 0.75:
        return replace(group, color=str(random.choice(list(PALETTE))))
    return replace(group, shape=str(random.choice(list(SHAPES))))


def shade(color: tuple[int, int, int], saturation: float) -> tuple[int, int, int]:
    """`color` with its saturation scaled."""
    hue, s, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in color))
    red, green, blue = colorsys.hsv_to_rgb(hue, s * saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _ground(scene: Scene) -> tuple[int, int, int]:
    if scene.ground:
        return GROUNDS[scene.ground]
    red, green, blue = colorsys.hsv_to_rgb(scene.style.hue, scene.style.chroma, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def _paint_ground(draw: ImageDraw.ImageDraw, scene: Scene) -> None:
    color = _ground(scene)
    draw.rectangle((0, 0, SIDE, SIDE), fill=color)
    tone = (
        tuple(int(channel * 0.88) for channel in color) if sum(color) > 300 else tuple(c + 26 for c in color)
    )
    period = SIDE // 8
    if scene.style.pattern == "stripes":
        for left in range(0, SIDE, period):
            draw.rectangle((left, 0, left + period // 2 - 1, SIDE), fill=tone)
    if scene.style.pattern == "dots":
        radius = period // 4
        for x in range(period // 2, SIDE, period):
            for y in range(period // 2, SIDE, period):
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tone)


def _polygon(draw: ImageDraw.ImageDraw, box: tuple[float, ...], points: str, fill: Any) -> None:
    """Fill the polygon whose corners stand in `points` ("x,y x,y") on a 0..10 square laid over `box`."""
    left, top, right, bottom = box
    corners = [tuple(float(v) / 10 for v in point.split(",")) for point in points.split()]
    draw.polygon([(left + x * (right - left), top + y * (bottom - top)) for x, y in corners], fill=fill)


def _thing(draw: ImageDraw.ImageDraw, thing: str, box: tuple[float, ...], main: Any, trim: Any) -> None:
    left, top, right, bottom = box

    def at(x: float, y: float) -> tuple[float, float]:
        return left + x / 10 * (right - left), top + y / 10 * (bottom - top)

    def oval(a: float, b: float, c: float, d: float, fill: Any) -> None:
        draw.ellipse((*at(a, b), *at(c, d)), fill=fill)

    def poly(points: str, fill: Any) -> None:
        _polygon(draw, box, points, fill)

    match thing:
        case "banner":
            poly("1,1 9,1 9,8 5,6 1,8", main)
            poly("1,1 9,1 9,3 1,3", trim)
        case "kite":
            poly("5,0 9,4 5,10 1,4", main)
            poly("5,0 9,4 5,4", trim)
        case "tower":
            poly("3,2 7,2 8,10 2,10", main)
            poly("2,0 8,0 8,3 2,3", trim)
        case "house":
            poly("1,4 9,4 9,10 1,10", main)
            poly("0,4 5,0 10,4", trim)
        case "boat":
            poly("0,7 10,7 8,10 2,10", main)
            poly("5,0 9,6 5,6", trim)
        case "tree":
            poly("5,0 9,7 1,7", main)
            poly("4,7 6,7 6,10 4,10", trim)
        case "flower":
            for turn in range(5):
                x, y = 5 + 3 * math.sin(turn * 1.2566), 5 - 3 * math.cos(turn * 1.2566)
                oval(x - 2.1, y - 2.1, x + 2.1, y + 2.1, main)
            oval(3.4, 3.4, 6.6, 6.6, trim)
        case "heart":
            oval(0.5, 1, 5.4, 6, main)
            oval(4.6, 1, 9.5, 6, main)
            poly("0.9,4.7 9.1,4.7 5,10", main)
            oval(2, 2.2, 4, 4.2, trim)
        case "ball":
            oval(1, 1, 9, 9, main)
            poly("1.2,4 8.8,4 8.8,6 1.2,6", trim)
        case "cup":
            oval(6, 3, 10, 8, main)
            oval(7, 4.2, 9, 6.8, trim)
            poly("1,1 7.5,1 7,10 1.5,10", main)
        case "fish":
            oval(0, 2.5, 7.5, 7.5, main)
            poly("6.5,5 10,2 10,8", trim)
        case "arrow":
            poly("0,3.5 5.5,3.5 5.5,6.5 0,6.5", trim)
            poly("5,1 10,5 5,9", main)


def _shape(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, fill: Any) -> None:
    box = (x - radius, y - radius, x + radius, y + radius)
    match shape:
        case "circle":
            draw.ellipse(box, fill=fill)
        case "square":
            _polygon(draw, box, "0.6,0.6 9.4,0.6 9.4,9.4 0.6,9.4", fill)
        case "triangle":
            _polygon(draw, box, "5,0 10,9.6 0,9.6", fill)
        case "diamond":
            _polygon(draw, box, "5,-0.6 10.6,5 5,10.6 -0.6,5", fill)


def _sign(draw: ImageDraw.ImageDraw, scene: Scene, fill: Any, font: ImageFont.FreeTypeFont) -> None:
    unit = SIDE / 64
    box = (4 * unit, 12 * unit, 60 * unit, 52 * unit)
    match scene.sign:
        case "sign":
            draw.rounded_rectangle(box, radius=8 * unit, fill=fill)
        case "card":
            draw.rectangle(box, fill=fill)
        case "plate":
            draw.ellipse((1 * unit, 8 * unit, 63 * unit, 56 * unit), fill=fill)
        case "badge":
            _polygon(draw, box, "1.2,0 8.8,0 10,5 8.8,10 1.2,10 0,5", fill)
    ink = (40, 36, 30) if scene.color == "yellow" else (252, 252, 252)
    for digit, x in zip(scene.text, (21.5, 42.5), strict=True):
        draw.text((x * unit, 32 * unit), digit, font=font, fill=ink, anchor="mm")


class Painter:
    """Draws scenes as uint8 [64, 64, 3] arrays, antialiased."""

    def __init__(self) -> None:
        font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
        self.font = ImageFont.truetype(str(font), int(34 * SIDE / 64))

    def __call__(self, scene: Scene) -> np.ndarray:
        image = Image.new("RGB", (SIDE, SIDE))
        draw = ImageDraw.Draw(image)
        _paint_ground(draw, scene)

        def colored(name: str) -> tuple[int, int, int]:
            return shade(PALETTE[name], scene.style.saturation)

        unit = SIDE / 64
        if scene.source == "general":
            half = {"": 21, "small": 14, "large": 28}[scene.size] * unit
            box = (SIDE / 2 - half, SIDE / 2 - half, SIDE / 2 + half, SIDE / 2 + half)
            _thing(draw, scene.thing, box, colored(scene.color), colored(scene.trim or scene.color))
        elif scene.source == "text":
            _sign(draw, scene, colored(scene.color), self.font)
        else:
            rows = [32] if len(scene.objects) == 1 else [18, 46]
            for y, group in zip(rows, scene.objects, strict=True):
                for index in range(group.count):
                    x = 32 + (index - (group.count - 1) / 2) * 20
                    _shape(draw, group.shape, x * unit, y * unit, 8 * unit, colored(group.color))
        return np.asarray(image.resize((RESOLUTION, RESOLUTION), Image.Resampling.BOX))


def draw_pairs(seed: int, count: int, noise: dict[str, float]) -> tuple[np.ndarray, list[str]]:
    """`count` images uint8 [count, 64, 64, 3] with their captions; a share `noise[source]` is miscaptioned."""
    random = np.random.default_rng(seed)
    paint = Painter()
    images = np.empty((count, RESOLUTION, RESOLUTION, 3), np.uint8)
    captions = []
    for index in range(count):
        scene = draw_scene(random, SOURCES[index % len(SOURCES)])
        captions.append(caption(scene))
        shown = corrupt(random, scene) if random.uniform() < noise[scene.source] else scene
        images[index] = paint(shown)
    return images, captions


def prompt_rows(seed: int, source: str, train: int, test: int) -> tuple[list[dict[str, Any]], ...]:
    """Distinct prompts of one source as JSON rows: a training and a held-out split."""
    random = np.random.default_rng([seed, SOURCES.index(source)])
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < train + test:
        scene = draw_scene(random, source)
        rows.setdefault(caption(scene), {"prompt": caption(scene), **metadata(scene)})
    shuffled = [list(rows.values())[i] for i in random.permutation(train + test)]
    return shuffled[:train], shuffled[train : train + test]
