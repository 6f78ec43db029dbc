"""Score detections by GenEval's rules, with reasons (arXiv 2310.11513 and its evaluation script)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import hypot

import numpy as np
from numpy.typing import NDArray

from marble_reward_geneval.request import Request, Wanted

Box = tuple[float, float, float, float]
REMEDY = "Choose dtype=bfloat16 or float32"  # for a model that overflows


@dataclass(frozen=True, eq=False)
class Detection:
    """One object: box (left, top, right, bottom in pixels), score in [0, 1], and perhaps a mask [H, W]."""

    box: Box
    score: float
    mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Verdict:
    """A score, and the reasons why it is not full."""

    score: float
    reasons: tuple[str, ...]


Found = Mapping[str, Sequence[Detection]]
ColorsOf = Callable[[Sequence[Detection], str], list[str]]


def select(
    detections: Sequence[Detection], threshold: float, max_objects: int, max_overlap: float
) -> list[Detection]:
    """Select the detections of one class that count, best first.

    Args:
        detections: in any order.
        threshold: a score must be above this.
        max_objects: largest number to keep.
        max_overlap: intersection over union with a better box at which a detection is dropped; 1 drops none.
    """
    best = sorted((d for d in detections if d.score > threshold), key=lambda d: d.score, reverse=True)
    kept: list[Detection] = []
    for candidate in best[:max_objects]:
        if max_overlap == 1 or all(overlap(candidate.box, other.box) < max_overlap for other in kept):
            kept.append(candidate)
    return kept


def overlap(one: Box, other: Box) -> float:
    """Compute the intersection over union of two boxes, whose corners are pixels inside them."""
    shared = _area(
        (max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3]))
    )
    union = _area(one) + _area(other) - shared
    return shared / union if union else 0.0


def _area(box: Box) -> float:
    return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)


def relations(box: Box, target: Box, margin: float) -> set[str]:
    """Return the relations of `box` to `target`: at most two of left of, right of, above, below.

    The offset of the centres is shortened along each axis by `margin` times the sum of both sizes. A relation
    holds if the rest along its axis is more than half of the offset's full length.
    """
    offset = [(box[i] + box[i + 2] - target[i] - target[i + 2]) / 2 for i in (0, 1)]
    sizes = [box[i + 2] - box[i] + target[i + 2] - target[i] for i in (0, 1)]
    x, y = (
        np.sign(distance) * max(abs(distance) - margin * size, 0)
        for distance, size in zip(offset, sizes, strict=True)
    )
    if max(abs(x), abs(y)) < 1e-3:
        return set()
    far = hypot(*offset) / 2
    held = {"left of": x < -far, "right of": x > far, "above": y < -far, "below": y > far}
    return {relation for relation, holds in held.items() if holds}


def strict(request: Request, found: Found, colors_of: ColorsOf, margin: float) -> Verdict:
    """Score 1 if the picture is correct by the benchmark's rules, else 0.

    The `count` best detections of each class must exist, all with the required colour and position. Further
    detections do no harm unless `exclude` forbids them.

    Args:
        request: the requirements.
        found: detections by class, best first.
        colors_of: names the colours of detections of a class.
        margin: as in `relations`.
    """
    chosen = [list(found.get(wanted.name, ()))[: wanted.count] for wanted in request.include]
    _, reasons = _credits(request, chosen, colors_of, margin)
    for unwanted in request.exclude:
        count = len(found.get(unwanted.name, ()))
        if count >= unwanted.count:
            reasons.append(f"expected {unwanted.name} < {unwanted.count}, found {count}")
    return Verdict(0.0 if reasons else 1.0, tuple(reasons))


def soft(request: Request, found: Found, colors_of: ColorsOf, margin: float) -> Verdict:
    """Average the credits of all requirements: at most 1, and below 0 for many more objects than required.

    Each entry of `include` earns a credit for the count, 1 - |found - count| / count; one for its colour, if
    any, by the same formula for the objects of that colour; and one for its position, if any, of 1 or 0.
    Colour and position earn nothing unless the count is exact, and the position nothing unless the colour is.
    An entry of `exclude` earns 1 or 0 if its class is not included; the count of an included class decides by
    itself.

    Args: as for `strict`.
    """
    every = [list(found.get(wanted.name, ())) for wanted in request.include]
    credits, reasons = _credits(request, every, colors_of, margin)
    included = {wanted.name for wanted in request.include}
    for unwanted in request.exclude:
        if unwanted.name not in included:
            count = len(found.get(unwanted.name, ()))
            credits.append(float(count < unwanted.count))
            if count >= unwanted.count:
                reasons.append(f"expected {unwanted.name} < {unwanted.count}, found {count}")
    return Verdict(sum(credits) / len(credits), tuple(reasons))


def _credits(
    request: Request, chosen: Sequence[list[Detection]], colors_of: ColorsOf, margin: float
) -> tuple[list[float], list[str]]:
    """Return the credits of all entries of `include`, whose objects are `chosen`, and the faults."""
    credits: list[float] = []
    reasons: list[str] = []
    matched: list[
        list[Detection] | None
    ] = []  # None for an entry that failed: it is no target for a position
    for wanted, objects in zip(request.include, chosen, strict=True):
        earned, reason = _entry(wanted, objects, matched, colors_of, margin)
        credits += earned
        reasons += [reason] if reason else []
        matched.append(None if reason else objects)
    return credits, reasons


def _entry(
    wanted: Wanted,
    objects: list[Detection],
    matched: Sequence[list[Detection] | None],
    colors_of: ColorsOf,
    margin: float,
) -> tuple[list[float], str]:
    """Return the credits of one entry, and its fault ("" if there is none)."""
    credits, reason = [_closeness(len(objects), wanted.count)], ""
    if len(objects) != wanted.count:
        reason = f"expected {wanted.count} {wanted.name}, found {len(objects)}"
    if wanted.color is not None:
        if reason:
            credits.append(0.0)
        else:
            colors = colors_of(objects, wanted.name)
            credits.append(_closeness(colors.count(wanted.color), wanted.count))
            if colors.count(wanted.color) != wanted.count:
                reason = f"expected {wanted.count} {wanted.color} {wanted.name}, found {', '.join(colors)}"
    if wanted.position is not None:
        reason = reason or _misplaced(wanted.name, objects, wanted.position, matched, margin)
        credits.append(0.0 if reason else 1.0)
    return credits, reason


def _closeness(found: int, wanted: int) -> float:
    return 1 - abs(found - wanted) / wanted


def _misplaced(
    name: str,
    objects: Sequence[Detection],
    position: tuple[str, int],
    matched: Sequence[list[Detection] | None],
    margin: float,
) -> str:
    """Describe a wrong position, "" if there is none; every object must relate so to every target."""
    relation, place = position
    targets = matched[place]
    if targets is None:
        return f"no target for {name} to be {relation}"
    for thing in objects:
        for target in targets:
            held = relations(thing.box, target.box, margin)
            if relation not in held:
                return (
                    f"expected {name} {relation} its target, found it {' and '.join(sorted(held)) or 'on it'}"
                )
    return ""
