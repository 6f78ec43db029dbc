"""GenEval's rules on detections made by hand; every expectation is worked out beside it."""

from collections.abc import Sequence
from typing import Any

import pytest
from marble_reward_geneval.classes import CLASSES, COLORS, class_of
from marble_reward_geneval.request import Request, read_request
from marble_reward_geneval.rules import Detection, overlap, relations, select, soft, strict

MARGIN = 0.1


def square(x: float, y: float, side: float = 10, score: float = 0.95) -> Detection:
    """Return a square box about a centre."""
    return Detection((x - side / 2, y - side / 2, x + side / 2, y + side / 2), score)


def many(count: int) -> list[Detection]:
    return [square(20 * place, 0) for place in range(count)]


class Painted:
    """Answers with the colours that detections were painted in, and remembers what it was asked."""

    def __init__(self, *pairs: tuple[Detection, str]) -> None:
        self.colors = {id(thing): color for thing, color in pairs}
        self.asked: list[tuple[int, str]] = []

    def __call__(self, objects: Sequence[Detection], name: str) -> list[str]:
        self.asked.append((len(objects), name))
        return [self.colors[id(thing)] for thing in objects]


def request(tag: str, include: list[dict[str, Any]], exclude: list[dict[str, Any]] | None = None) -> Request:
    metadata: dict[str, Any] = {"tag": tag, "include": include, "prompt": "a prompt"}
    if exclude is not None:
        metadata["exclude"] = exclude
    return read_request("a prompt", metadata, CLASSES)


def both(
    wanted: Request, found: dict[str, list[Detection]], colors: Painted | None = None
) -> tuple[float, float]:
    """Return the strict and the soft score."""
    paint = colors or Painted()
    return strict(wanted, found, paint, MARGIN).score, soft(wanted, found, paint, MARGIN).score


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, (0, 0)), (1, (1, 1)), (2, (1, 0)), (3, (1, -1)), (16, (1, -14))],  # soft: 1 - |count - 1| / 1
)
def test_score_of_a_single_object(count: int, expected: tuple[float, float]) -> None:
    wanted = request("single_object", [{"class": "bench", "count": 1}])
    assert both(wanted, {"bench": many(count), "dog": many(2)}) == expected


@pytest.mark.parametrize(
    ("benches", "cats", "expected"), [(1, 1, (1, 1)), (1, 0, (0, 0.5)), (0, 0, (0, 0)), (2, 1, (1, 0.5))]
)
def test_score_of_two_objects(benches: int, cats: int, expected: tuple[float, float]) -> None:
    wanted = request("two_object", [{"class": "bench", "count": 1}, {"class": "cat", "count": 1}])
    assert both(wanted, {"bench": many(benches), "cat": many(cats)}) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    # 1 - |count - 2| / 2.
    [
        (0, (0, 0)),
        (1, (0, 0.5)),
        (2, (1, 1)),
        (3, (0, 0.5)),
        (4, (0, 0)),
        (5, (0, -0.5)),
    ],
)
def test_score_of_counting_with_an_exclusion(count: int, expected: tuple[float, float]) -> None:
    wanted = request("counting", [{"class": "bench", "count": 2}], [{"class": "bench", "count": 3}])
    assert wanted.counting
    assert both(wanted, {"bench": many(count)}) == expected


def test_score_of_an_excluded_class_that_is_not_included() -> None:
    wanted = request("single_object", [{"class": "bench", "count": 1}], [{"class": "dog", "count": 2}])
    assert both(wanted, {"bench": many(1), "dog": many(1)}) == (1, 1)
    assert both(wanted, {"bench": many(1), "dog": many(2)}) == (0, 0.5)
    assert soft(wanted, {"bench": many(1), "dog": many(2)}, Painted(), MARGIN).reasons == (
        "expected dog < 2, found 2",
    )


def test_score_of_a_colour() -> None:
    wanted = request("colors", [{"class": "bench", "count": 1, "color": "red"}])
    first, second = square(0, 0, score=0.9), square(30, 0, score=0.8)
    assert both(wanted, {"bench": [first]}, Painted((first, "red"))) == (1, 1)
    assert both(wanted, {"bench": [first]}, Painted((first, "blue"))) == (0, 0.5)  # (count 1 + colour 0) / 2
    assert both(wanted, {}) == (0, 0)
    paint = Painted((first, "red"), (second, "blue"))
    assert both(wanted, {"bench": [first, second]}, paint) == (1, 0)  # strict asks the better one only
    assert paint.asked == [(1, "bench")]  # soft does not ask where the count is wrong
    paint = Painted((first, "blue"), (second, "red"))
    assert both(wanted, {"bench": [first, second]}, paint) == (0, 0)  # the red one is the less certain


def test_score_of_a_colour_of_several_objects() -> None:
    wanted = request("colors", [{"class": "cup", "count": 2, "color": "red"}])
    one, other = many(2)
    assert both(wanted, {"cup": [one, other]}, Painted((one, "red"), (other, "red"))) == (1, 1)
    # count 1, colour 1 - |1 - 2| / 2
    assert both(wanted, {"cup": [one, other]}, Painted((one, "red"), (other, "green"))) == (0, 0.75)


def test_colours_are_bound_to_their_objects() -> None:
    wanted = request(
        "color_attr",
        [{"class": "bench", "count": 1, "color": "red"}, {"class": "cat", "count": 1, "color": "blue"}],
    )
    bench, cat = square(0, 0), square(30, 0)
    found = {"bench": [bench], "cat": [cat]}
    assert both(wanted, found, Painted((bench, "red"), (cat, "blue"))) == (1, 1)
    assert both(wanted, found, Painted((bench, "blue"), (cat, "red"))) == (0, 0.5)  # (1 + 0 + 1 + 0) / 4
    assert both(wanted, found, Painted((bench, "red"), (cat, "red"))) == (0, 0.75)  # (1 + 1 + 1 + 0) / 4
    assert both(wanted, {"bench": [bench]}, Painted((bench, "red"))) == (0, 0.5)  # (1 + 1 + 0 + 0) / 4


POSITION = [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}]


def test_score_of_a_position() -> None:
    wanted = request("position", POSITION)
    cat = square(50, 50)
    assert both(wanted, {"cat": [cat], "dog": [square(20, 50)]}) == (1, 1)
    # (1 + 1 + 0) / 3.
    assert both(wanted, {"cat": [cat], "dog": [square(80, 50)]}) == pytest.approx((0, 2 / 3))
    assert both(wanted, {"dog": [square(20, 50)]}) == pytest.approx((0, 1 / 3))  # (0 + 1 + 0) / 3: no target
    assert both(wanted, {"cat": [cat]}) == pytest.approx((0, 1 / 3))  # (1 + 0 + 0) / 3
    # A second cat: strict looks at the better one, soft has no exact target: (0 + 1 + 0) / 3.
    assert both(wanted, {"cat": [cat, square(90, 50)], "dog": [square(20, 50)]}) == pytest.approx((1, 1 / 3))


def test_a_position_holds_for_every_pair() -> None:
    wanted = request(
        "position", [{"class": "cat", "count": 2}, {"class": "dog", "count": 1, "position": ["left of", 0]}]
    )
    assert both(wanted, {"cat": [square(50, 0), square(90, 0)], "dog": [square(20, 0)]}) == (1, 1)
    assert both(wanted, {"cat": [square(50, 0), square(90, 0)], "dog": [square(70, 0)]}) == pytest.approx(
        (0, 2 / 3)
    )


def test_a_wrong_colour_earns_no_position() -> None:
    # Credits: cat, dog, its colour, its position.
    wanted = request("position", [{"class": "cat", "count": 1}, {**POSITION[1], "color": "red"}])
    cat, dog = square(50, 0), square(20, 0)
    assert both(wanted, {"cat": [cat], "dog": [dog]}, Painted((dog, "red"))) == (1, 1)
    assert both(wanted, {"cat": [cat], "dog": [dog]}, Painted((dog, "pink"))) == (0, 0.5)


def test_reasons_name_the_missing_requirements() -> None:
    wanted = request("position", POSITION)
    verdict = strict(wanted, {"cat": [square(50, 50)], "dog": [square(80, 50)]}, Painted(), MARGIN)
    assert verdict.reasons == ("expected dog left of its target, found it right of",)
    verdict = soft(wanted, {"dog": many(1)}, Painted(), MARGIN)
    assert verdict.reasons == ("expected 1 cat, found 0", "no target for dog to be left of")


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        # Sides 10 and 10: each axis loses 0.1 * 20 = 2. The rest over the offset's length must be above 1/2.
        (5, 0, {"right of"}),  # 3 / 5
        (4, 0, set()),  # 2 / 4 is not above 1/2
        (4.01, 0, {"right of"}),
        (2, 0, set()),  # nothing left
        (-5, 0, {"left of"}),
        (-4, 0, set()),
        (0, -5, {"above"}),  # pictures count rows downwards
        (0, -4, set()),
        (0, 5, {"below"}),
        (0, 4, set()),
        (20, 20, {"right of", "below"}),  # 18 / 28.3 = 0.64 each
        (-20, -20, {"left of", "above"}),
        (20, 10, {"right of"}),  # 18 / 22.4 = 0.80 and 8 / 22.4 = 0.36
        (6, 6, set()),  # 4 / 8.5 = 0.47 each
        (0, 0, set()),
    ],
)
def test_relation_holds_above_half_of_the_offset(x: float, y: float, expected: set[str]) -> None:
    assert relations(square(100 + x, 100 + y).box, square(100, 100).box, MARGIN) == expected


def test_relation_depends_on_both_sizes() -> None:
    # 10 x 40 against 20 x 20: the axes lose 3 and 6. The offset (10, 14) has length 17.2; 7 and 8 are left.
    one, other = (5.0, -6.0, 15.0, 34.0), (-10.0, -10.0, 10.0, 10.0)
    assert relations(one, other, 0.1) == set()
    assert relations(one, other, 0.0) == {"right of", "below"}  # 10 / 17.2 = 0.58 and 14 / 17.2 = 0.81
    assert relations(one, other, 0.08) == {"below"}  # 7.6 / 17.2 = 0.44 and 9.2 / 17.2 = 0.53


def test_selection_threshold_order_and_number() -> None:
    scores = [0.3, 0.95, 0.31, 0.5]
    things = [square(20 * place, 0, score=score) for place, score in enumerate(scores)]
    assert [thing.score for thing in select(things, 0.3, 16, 1.0)] == [0.95, 0.5, 0.31]  # above, not at
    assert [thing.score for thing in select(things, 0.0, 2, 1.0)] == [0.95, 0.5]


def test_selection_drops_overlapping_boxes() -> None:
    better = Detection((0, 0, 9, 9), 0.9)  # 100 pixels, both corners belong to it
    half = Detection((0, 0, 9, 4), 0.8)  # 50 pixels of these
    apart = Detection((50, 50, 59, 59), 0.7)
    assert overlap(better.box, half.box) == 0.5
    assert overlap(better.box, apart.box) == 0
    assert select([half, apart, better], 0.3, 16, 0.5) == [better, apart]
    assert select([half, apart, better], 0.3, 16, 0.51) == [better, half, apart]
    same = Detection((0, 0, 9, 9), 0.85)
    assert select([better, same], 0.3, 16, 1.0) == [better, same]  # 1 drops nothing
    assert select([better, same, half], 0.3, 16, 0.999) == [better, half]


def test_classes_are_those_of_the_benchmark() -> None:
    assert len(CLASSES) == len(set(CLASSES)) == 80
    assert len(COLORS) == 10
    assert {"computer mouse", "tv remote", "computer keyboard", "tv", "couch", "hair drier"} <= set(CLASSES)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("mouse", "computer mouse"),
        ("remote", "tv remote"),
        ("keyboard", "computer keyboard"),
        ("tvmonitor", "tv"),
        ("motorbike", "motorcycle"),
        ("aeroplane", "airplane"),
        ("sofa", "couch"),
        ("pottedplant", "potted plant"),
        ("diningtable", "dining table"),
        ("cat", "cat"),
        ("Traffic_Light", "traffic light"),
        ("N/A", None),
        ("street sign", None),
    ],
)
def test_labels_of_detectors(label: str, name: str | None) -> None:
    assert class_of(label) == name


GOOD = {"class": "bench", "count": 1}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            {"include": [{"class": "benchh", "count": 1}]},
            "include class='benchh' is unknown; did you mean 'bench'",
        ),
        ({"include": [{"count": 1}]}, "include class=None is unknown"),
        ({"include": [{**GOOD, "color": "gren"}]}, "include color='gren' is unknown; did you mean 'green'"),
        (
            {"include": [{**GOOD, "count": 0}]},
            "include count=0 of 'bench': expected a whole number from 1 on",
        ),
        ({"include": [{"class": "bench"}]}, "include count=None of 'bench'"),
        ({"include": [{**GOOD, "count": True}]}, "include count=True"),
        ({"include": []}, "include is empty"),
        ({"include": "bench"}, "include='bench': expected a list"),
        ({"include": ["bench"]}, "include has 'bench': expected a mapping"),
        (
            {"include": [GOOD, {**GOOD, "position": ["left", 0]}]},
            "position='left' is unknown; did you mean 'left of'",
        ),
        ({"include": [GOOD, {**GOOD, "position": ["left of", 1]}]}, "must be an earlier entry, 0 to 0"),
        ({"include": [GOOD, {**GOOD, "position": ["left of", -1]}]}, "must be an earlier entry"),
        ({"include": [{**GOOD, "position": ["left of", 0]}]}, "the first entry has none"),
        ({"include": [GOOD, {**GOOD, "position": "left of"}]}, "expected a relation and an entry"),
        ({"include": [GOOD], "exclude": [{"class": "dgo", "count": 1}]}, "exclude class='dgo'.*'dog'"),
        ({"include": [GOOD], "tag": "count"}, "tag='count' is unknown; did you mean 'counting'"),
    ],
)
def test_bad_metadata_is_an_error_that_names_the_prompt(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(
        ValueError, match=f"metadata of the prompt 'a bench': .*{message}".replace("[", "\\[")
    ):
        read_request("a bench", metadata, CLASSES)


def test_absent_keys_may_be_none() -> None:
    columns = {"include": [{**GOOD, "color": None, "position": None}], "exclude": None, "tag": None}
    assert read_request("a bench", columns, CLASSES) == read_request("a bench", {"include": [GOOD]}, CLASSES)
