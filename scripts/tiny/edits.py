"""Editing tasks of the tiny world: a picture of two or three shapes, an instruction, and what it asks for.

An edit gives one shape another colour, makes another shape of it, or removes it; all else must stay as it is.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from scripts.tiny.painter import RESOLUTION, SIDE, UNIT, paint_ground, paint_shape, shade
from scripts.tiny.world import GROUNDS, PALETTE, SHAPES, Scene, random_style

CENTRES = (17, 47)  # of the quadrants in which shapes lie, in pixels
JITTER = 2.0  # largest distance from there, in pixels
RADIUS = 10  # of a shape, in pixels
MARGIN = 4  # pixels between a shape and the border of its region
KINDS = ("color", "shape", "remove")
# What a pretraining target shows, with its share: of a careless editor's work, and of a better one's. The
# base model can do all of it, and does each at times.
CARELESS = {"right": 0.3, "unchanged": 0.3, "redrawn": 0.3, "wrong": 0.1}
BETTER = {"right": 0.5, "unchanged": 0.25, "redrawn": 0.2, "wrong": 0.05}


@dataclass(frozen=True)
class Shape:
    """A shape by its name and colour, with its centre in pixels."""

    shape: str
    color: str
    x: float
    y: float

    @property
    def region(self) -> list[float]:
        """Return the box around the shape: left, top, right, bottom, as shares of the picture's sides."""
        half = RADIUS + MARGIN
        box = (self.x - half, self.y - half, self.x + half, self.y + half)
        return [round(side / RESOLUTION, 4) for side in box]


@dataclass(frozen=True)
class Picture:
    """Shapes, all different, on a ground."""

    ground: Scene
    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class Edit:
    """A change of the shape at `index`; `value` is its new colour or shape, or empty if it is removed."""

    kind: str
    index: int
    value: str

    def instruction(self, picture: Picture) -> str:
        """Return the words that ask for this edit."""
        name = picture.shapes[self.index].shape
        match self.kind:
            case "color":
                return f"make the {name} {self.value}"
            case "shape":
                return f"turn the {name} into a {self.value}"
            case _:
                return f"remove the {name}"

    def apply(self, picture: Picture) -> Picture:
        """Return the edited picture."""
        shapes = list(picture.shapes)
        if self.kind == "remove":
            del shapes[self.index]
        else:
            change: dict[str, Any] = {self.kind: self.value}
            shapes[self.index] = replace(shapes[self.index], **change)
        return replace(picture, shapes=tuple(shapes))

    def metadata(self, picture: Picture) -> dict[str, Any]:
        """Return what must change: the region, and the shapes that must be inside; all else must stay."""
        before = picture.shapes[self.index]
        inside = [shape for shape in self.apply(picture).shapes if (shape.x, shape.y) == (before.x, before.y)]
        include = [{"class": shape.shape, "color": shape.color, "count": 1} for shape in inside]
        return {"region": before.region, "include": include}


def random_picture(random: np.random.Generator) -> Picture:
    """Draw two or three different shapes of random colours in different quadrants."""
    ground = str(random.choice(list(GROUNDS))) if random.uniform() < 0.5 else ""
    count = int(random.integers(2, 4))
    places = random.permutation(4)[:count]
    names = random.permutation(list(SHAPES))[:count]
    shapes = tuple(
        Shape(
            str(name),
            str(random.choice(list(PALETTE))),
            round(CENTRES[place % 2] + random.uniform(-JITTER, JITTER), 2),
            round(CENTRES[place // 2] + random.uniform(-JITTER, JITTER), 2),
        )
        for name, place in zip(names, places, strict=True)
    )
    return Picture(Scene("edit", random_style(random), ground=ground), shapes)


def possible_edits(picture: Picture) -> list[Edit]:
    """Return all edits of a picture after which its shapes still differ."""
    present = {shape.shape for shape in picture.shapes}
    edits = []
    for index, shape in enumerate(picture.shapes):
        edits += [Edit("color", index, color) for color in PALETTE if color != shape.color]
        edits += [Edit("shape", index, name) for name in SHAPES if name not in present]
        edits.append(Edit("remove", index, ""))
    return edits


def random_edit(random: np.random.Generator, picture: Picture) -> Edit:
    """Draw an edit, each kind as often as the others."""
    kind = KINDS[int(random.integers(len(KINDS)))]
    edits = [edit for edit in possible_edits(picture) if edit.kind == kind]
    return edits[int(random.integers(len(edits)))]


def random_target(
    random: np.random.Generator, picture: Picture, edit: Edit, shares: Mapping[str, float]
) -> Picture:
    """Return a picture that pretraining shows as the result of an edit, by the shares of its kinds.

    `unchanged` keeps everything, `redrawn` follows the instruction and keeps neither ground nor colours, and
    `wrong` makes another edit.
    """
    kind = str(random.choice(list(shares), p=list(shares.values())))
    if kind == "unchanged":
        return picture
    if kind == "wrong":
        return random_edit(random, picture).apply(picture)
    edited = edit.apply(picture)
    if kind == "right":
        return edited
    shapes = tuple(
        shape if shape not in picture.shapes else replace(shape, color=str(random.choice(list(PALETTE))))
        for shape in edited.shapes
    )
    return Picture(random_picture(random).ground, shapes)


def paint_picture(picture: Picture) -> np.ndarray:
    """Paint a picture as uint8 [64, 64, 3], averaged down from three times the resolution."""
    image = Image.new("RGB", (SIDE, SIDE))
    draw = ImageDraw.Draw(image)
    paint_ground(draw, picture.ground)
    for shape in picture.shapes:
        fill = shade(PALETTE[shape.color], picture.ground.style.saturation)
        paint_shape(draw, shape.shape, (shape.x * UNIT, shape.y * UNIT), RADIUS * UNIT, fill)
    return np.asarray(image.resize((RESOLUTION, RESOLUTION), Image.Resampling.BOX))


def painted_triples(
    seed: int, count: int, shares: Mapping[str, float]
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Draw pictures with an edit each, and paint them.

    Args:
        seed: of everything.
        count: of the triples.
        shares: of the kinds of targets.

    Returns:
        Pictures uint8 [count, 64, 64, 3], instructions, and edited pictures uint8 [count, 64, 64, 3].
    """
    random = np.random.default_rng([seed, 1])
    before, after = (np.empty((count, RESOLUTION, RESOLUTION, 3), np.uint8) for _ in range(2))
    instructions = []
    for index in range(count):
        picture = random_picture(random)
        edit = random_edit(random, picture)
        before[index] = paint_picture(picture)
        after[index] = paint_picture(random_target(random, picture, edit, shares))
        instructions.append(edit.instruction(picture))
    return before, instructions, after


def edit_rows(
    seed: int, split: str, pictures: int, each: int
) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """Draw the pictures of one split, `train` or `test`, and the shuffled rows of `each` edits of them.

    Each kind of edit is as frequent as the others, so far as a picture has that many.
    """
    random = np.random.default_rng([seed, 2, ("train", "test").index(split)])
    painted, rows = [], []
    for number in range(pictures):
        picture = random_picture(random)
        painted.append(paint_picture(picture))
        edits: dict[Edit, None] = {}
        while len(edits) < min(each, len(possible_edits(picture))):
            edits.setdefault(random_edit(random, picture))
        image = picture_name(split, number)
        rows += [
            {"prompt": edit.instruction(picture), "image": image, **edit.metadata(picture)} for edit in edits
        ]
    return painted, [rows[i] for i in random.permutation(len(rows))]


def picture_name(split: str, number: int) -> str:
    """Return the name of a picture's file, under the folder of the prompts."""
    return f"pictures/{split}-{number:02}.png"


def save_edits(seed: int, root: Path, counts: dict[str, tuple[int, int]]) -> None:
    """Write the rows and pictures of every split; `counts` are its pictures and the edits of each."""
    (root / "pictures").mkdir(parents=True, exist_ok=True)
    for split, (pictures, each) in counts.items():
        painted, rows = edit_rows(seed, split, pictures, each)
        for number, pixels in enumerate(painted):
            Image.fromarray(pixels).save(root / picture_name(split, number), optimize=True)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (root / f"{split}.jsonl").write_text(text, encoding="utf-8")
