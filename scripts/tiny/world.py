"""Scenes of the embedded `tiny` model's world, their prompts and their metadata; `painter` draws them.

There are three sources of prompts: *general* (a thing of some colour on some ground), *text* (a sign with two
legible digits) and *compositional* (counts, colours and shapes). A `Scene` is the meaning of a prompt and a
`Style` that no prompt mentions (saturation, ground tint and pattern), which rewards can improve without
contradicting the prompt.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

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
    "banner",
    "kite",
    "tower",
    "house",
    "boat",
    "tree",
    "flower",
    "heart",
    "ball",
    "cup",
    "fish",
    "arrow",
)
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
    """The look that no prompt mentions.

    Attributes:
        saturation: of the palette's colours, in [0.5, 1].
        hue: of the ground's tint, in [0, 1].
        chroma: strength of that tint, in [0, 0.28].
        pattern: of the ground: plain, stripes or dots.
    """

    saturation: float
    hue: float
    chroma: float
    pattern: str


@dataclass(frozen=True)
class Scene:
    """The meaning of a prompt and its style; only the fields that its `source` uses are set."""

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


def random_style(random: np.random.Generator) -> Style:
    """Draw a style."""
    pattern = str(random.choice(["plain", "stripes", "dots"], p=[0.34, 0.33, 0.33]))
    return Style(random.uniform(0.5, 1.0), random.uniform(), random.uniform(0.0, 0.28), pattern)


def random_scene(random: np.random.Generator, source: str) -> Scene:
    """Draw a scene of one source."""

    def pick(options: Iterable[str]) -> str:
        return str(random.choice(list(options)))

    style = random_style(random)
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
    """Return the prompt that asks for `scene`."""
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
    """Return the metadata that rewards need: `text` to be read, or `include` in GenEval's format."""
    if scene.source == "text":
        return {"text": scene.text}
    if scene.source == "compositional":
        return {"include": [{"class": o.shape, "color": o.color, "count": o.count} for o in scene.objects]}
    return {}


def corrupt(random: np.random.Generator, scene: Scene) -> Scene:
    """Return a scene that a careless captioner could have described as `scene`.

    Such pairs leave the base model room to improve.
    """
    other = random_scene(random, scene.source)
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


def prompt_rows(seed: int, source: str, train: int, test: int) -> tuple[list[dict[str, Any]], ...]:
    """Draw distinct prompts of one source, as rows of JSON files: `train` and `test` (held out) of them."""
    random = np.random.default_rng([seed, SOURCES.index(source)])
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < train + test:
        scene = random_scene(random, source)
        rows.setdefault(caption(scene), {"prompt": caption(scene), **metadata(scene)})
    shuffled = [list(rows.values())[i] for i in random.permutation(train + test)]
    return shuffled[:train], shuffled[train : train + test]
