"""The `objects` reward against pictures whose contents are known."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from marble_reward_objects.reward import PALETTE, Objects, Thing, _symmetry, agreement, find_objects
from torch import Tensor

from marble_cli.rewards.conformance import RewardConformance


class TestObjectsConformance(RewardConformance):
    plugin = "objects"


def grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates x and y [side, side] in [-1, 1]."""
    rows, columns = np.mgrid[:side, :side]
    return (columns - (side - 1) / 2) / (side / 2), (rows - (side - 1) / 2) / (side / 2)


def shape(name: str, side: int) -> np.ndarray:
    """Return the mask [side, side] of a shape."""
    x, y = grid(side)
    masks: dict[str, np.ndarray] = {
        "circle": x**2 + y**2 < 0.8,
        "square": (abs(x) < 0.8) & (abs(y) < 0.8),
        "diamond": abs(x) + abs(y) < 0.95,
        "triangle": (abs(x) < (y + 0.8) / 1.8) & (y < 0.8),
    }
    return masks[name]


def picture(things: list[tuple[str, str]], side: int = 96) -> Tensor:
    """Objects of some (colour, shape) in a row on a light ground: uint8 [3, side, side]."""
    canvas = np.full((side, side, 3), 232, np.uint8)
    cell = side // 4
    for index, (color, name) in enumerate(things):
        top, left = cell + cell * (index // 3), cell // 2 + cell * (index % 3)
        canvas[top : top + cell, left : left + cell][shape(name, cell)] = PALETTE[color][0]
    return torch.from_numpy(canvas).permute(2, 0, 1)


def include(*entries: tuple[str, str, int]) -> dict[str, Any]:
    return {"include": [{"class": c, "color": color, "count": n} for color, c, n in entries]}


@pytest.mark.parametrize("color", ["red", "orange", "yellow", "green", "blue", "purple", "black"])
@pytest.mark.parametrize("name", ["circle", "square", "triangle", "diamond"])
def test_names_every_colour_and_shape(color: str, name: str) -> None:
    assert find_objects(picture([(color, name)])) == [Thing(color, name)]


@pytest.mark.parametrize("side", [48, 64, 97, 300, 512])
def test_picture_size_does_not_matter(side: int) -> None:
    things = [("red", "circle"), ("blue", "square"), ("green", "triangle")]
    assert find_objects(picture(things, side)) == [Thing(*thing) for thing in things]


def test_pictures_need_not_be_square() -> None:
    image = torch.cat([picture([("red", "circle")]), picture([("blue", "diamond")])], dim=2)
    assert find_objects(image) == [Thing("red", "circle"), Thing("blue", "diamond")]


@pytest.mark.parametrize(
    ("wanted", "score"),
    [
        (include(("red", "circle", 2), ("blue", "square", 1)), 1.0),
        (include(("red", "circle", 2), ("blue", "triangle", 1)), (1 + 1 + 0.5) / 3),
        (include(("red", "circle", 2), ("green", "square", 1)), (1 + 1 + 0.5) / 3),
        (include(("red", "circle", 2)), 2 / 3),
        (include(("red", "circle", 3), ("blue", "square", 1)), 3 / 4),
        (include(("green", "diamond", 3)), 0.0),
        (include(("blue", "circle", 1), ("red", "square", 1)), (0.5 + 0.5) / 3),
    ],
)
def test_score_counts_right_colours_shapes_and_numbers(wanted: dict[str, Any], score: float) -> None:
    image = picture([("red", "circle"), ("red", "circle"), ("blue", "square")])
    assert Objects()(image[None], [wanted]) == pytest.approx([score])


def test_the_best_pairing_counts() -> None:
    found = [Thing("red", "circle"), Thing("red", "square")]
    wanted = [Thing("red", "square"), Thing("blue", "circle")]
    assert agreement(found, wanted) == pytest.approx((1 + 0.5) / 2)
    assert agreement(found, wanted[::-1]) == agreement(found[::-1], wanted) == agreement(wanted, found)


def test_an_empty_picture_shows_nothing() -> None:
    ground = torch.full((1, 3, 64, 64), 200, dtype=torch.uint8)
    assert Objects()(ground, [include(("red", "circle", 1))]) == [0.0]


def test_fourfold_symmetry_of_a_square_in_closed_form() -> None:
    x, y = grid(600)
    square, disc = (abs(x) < 0.6) & (abs(y) < 0.6), x**2 + y**2 < 0.5
    assert _symmetry(square) == pytest.approx((0, 0, -3 / 7), abs=2e-3)
    assert _symmetry(abs(x) + abs(y) < 0.8) == pytest.approx((0, 0, 3 / 7), abs=2e-3)
    assert _symmetry(disc) == pytest.approx((0, 0, 0), abs=2e-3)
    assert _symmetry(x**2 + (1.5 * y) ** 2 < 0.5)[0] == pytest.approx(5 / 13, abs=2e-3)
    equilateral = (abs(x) < (y + 0.6) / math.sqrt(3)) & (y < 0.6)
    assert _symmetry(equilateral)[1] == pytest.approx(0.66, abs=0.01)


@pytest.mark.parametrize("key", ["class", "color", "count"])
def test_a_missing_key_is_named(key: str) -> None:
    entry = {"class": "circle", "color": "red", "count": 1}
    del entry[key]
    [refused] = Objects()(picture([("red", "circle")])[None], [{"include": [entry]}])
    assert isinstance(refused, ValueError)
    assert f"key '{key}' is missing" in str(refused)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"include": []}, "expected a list of objects"),
        ({"include": "two circles"}, "expected a list of objects"),
        ({"include": ["circle"]}, "expected a mapping"),
        (include(("red", "dog", 1)), "class='dog'"),
        (include(("teal", "circle", 1)), "color='teal'"),
        (include(("red", "circle", 0)), "count=0"),
    ],
)
def test_unknown_requirement_fails_only_its_image(wanted: dict[str, Any], message: str) -> None:
    both = torch.stack([picture([("red", "circle")])] * 2)
    refused, score = Objects()(both, [wanted, include(("red", "circle", 1))])
    assert isinstance(refused, ValueError)
    assert message in str(refused)
    assert score == 1.0


def test_reads_the_tiny_world() -> None:
    """Covers every saturation, ground and pattern; a mistaken prompt scores as its differences imply."""
    # Outside a checkout there is no generator of the tiny model's pictures.
    world, painter = (pytest.importorskip(f"scripts.tiny.{name}") for name in ("world", "painter"))
    random, paint, reward = np.random.default_rng(20), painter.Painter(), Objects()
    right, wrong, worth = [], [], []
    for _ in range(120):
        scene = world.random_scene(random, "compositional")
        other = world.corrupt(random, scene)
        image = torch.from_numpy(paint(scene).copy()).permute(2, 0, 1)[None]
        right += reward(image, [world.metadata(scene)])
        wrong += reward(image, [world.metadata(other)])
        worth.append(agreement(*(_things(world.metadata(s)) for s in (scene, other))))
    assert np.mean(right) >= 0.97
    assert np.mean(wrong) == pytest.approx(np.mean(worth), abs=0.03)


def _things(metadata: dict[str, Any]) -> list[Thing]:
    counts = Counter({Thing(e["color"], e["class"]): 0 for e in metadata["include"]})
    for entry in metadata["include"]:
        counts[Thing(entry["color"], entry["class"])] += entry["count"]
    return list(counts.elements())


LEFT, RIGHT = [0.0, 0.15, 0.38, 0.6], [0.38, 0.15, 0.66, 0.6]  # around the first two things of `picture`


@pytest.mark.parametrize(
    ("region", "wanted", "score"),
    [
        (LEFT, include(("red", "circle", 1)), 1.0),
        (RIGHT, include(("red", "circle", 1)), 0.0),
        (RIGHT, include(("blue", "square", 1)), 1.0),
        (RIGHT, include(("blue", "circle", 1)), 0.5),
        (LEFT, include(), 0.0),
        ([0.0, 0.6, 1.0, 1.0], include(), 1.0),
    ],
)
def test_only_a_region_counts(region: list[float], wanted: dict[str, Any], score: float) -> None:
    image = picture([("red", "circle"), ("blue", "square")])
    assert Objects()(image[None], [{**wanted, "region": region}]) == [score]


@pytest.mark.parametrize(
    "region", [[0, 0, 1], [0.5, 0, 0.5, 1], [0, 0.6, 1, 0.5], [0, 0, 1.1, 1], [-0.1, 0, 1, 1]]
)
def test_a_region_outside_of_the_picture_is_refused(region: list[float]) -> None:
    wanted = {**include(("red", "circle", 1)), "region": region}
    [refused] = Objects()(picture([("red", "circle")])[None], [wanted])
    assert isinstance(refused, ValueError)
    assert "expected [left, top, right, bottom] in [0, 1]" in str(refused)
