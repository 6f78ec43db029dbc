"""GenEval's rules: from what was detected to a score, with reasons (arXiv 2310.11513 and its evaluation script)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import hypot

import numpy as np
from numpy.typing import NDArray

from marble_reward_geneval.request import Request, Wanted

Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Detection:
    """One object: its box (left, top, right, bottom in pixels), its score in [0, 1], its mask [H, W] if there is one."""

    box: Box
    score: float
    mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Verdict:
    """A score, and what is missing for a full one."""

    score: float
    reasons: tuple[str, ...]


Found = Mapping[str, Sequence[Detection]]
ColorsOf = Callable[[Sequence[Detection], str], list[str]]


def select(
    detections: Sequence[Detection], threshold: float, max_objects: int, max_overlap: float
) -> list[Detection]:
    """The detections of one class that count, best first.

    Args:
        detections: in any order.
        threshold: a score must be above it.
        max_objects: so many at most.
        max_overlap: one whose box has this intersection over union with a better one, or more, is dropped; 1 drops none.
    """
    best = sorted((d for d in detections if d.score > threshold), key=lambda d: d.score, reverse=True)
    kept: list[Detection] = []
    for candidate in best[:max_objects]:
        if max_overlap == 1 or all(overlap(candidate.box, other.box) < max_overlap for other in kept):
            kept.append(candidate)
    return kept


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes whose corners are pixels that belong to them."""
    shared = _area(
        (max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3]))
    )
    union = _area(one) + _area(other) - shared
    return shared / union if union else 0.0


def _area(box: Box) -> float:
    return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)


def relations(box: Box, target: Box, margin: float) -> set[str]:
    """Where `box` lies as seen from `target`.

    The offset of the centres is shortened along each axis by `margin` times the sum of both sizes. What is left, over
    the offset's full length, must be above 1/2 along an axis for the relation to hold: at most two do.
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
    """1 if the picture is correct as the benchmark has it, else 0.

    Of each class the `count` best detections must be there, all of the colour and in the position asked for; further
    ones do no harm unless `exclude` forbids them.

    Args:
        request: what is wanted.
        found: the detections of each class, best first.
        colors_of: the colours of some detections of a class.
        margin: of `relations`.
    """
    chosen = [list(found.get(wanted.name, ()))[: wanted.count] for wanted in request.include]
    _, reasons = _credits(request, chosen, colors_of, margin)
    for unwanted in request.exclude:
        count = len(found.get(unwanted.name, ()))
        if count >= unwanted.count:
            reasons.append(f"expected {unwanted.name} < {unwanted.count}, found {count}")
    return Verdict(0.0 if reasons else 1.0, tuple(reasons))


def soft(request: Request, found: Found, colors_of: ColorsOf, margin: float) -> Verdict:
    """The mean credit of all that was asked for; at most 1, below 0 for many more objects than wanted.

    Each entry of `include` has a credit for the count, 1 - |found - count| / count, one for the colour if it names
    one, likewise of the objects that have it, and one for the position if it has one, 1 or 0. Colour and position earn
    nothing unless the count is exact, the position nothing unless the colour is. An entry of `exclude` whose class is
    not included has a credit of 1 or 0; the exact count speaks for the others.

    Args: as of `strict`.
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
    """Credits of all entries of `include`, and why some are not full; `chosen` are the objects of each entry."""
    credits: list[float] = []
    reasons: list[str] = []
    matched: list[list[Detection] | None] = []  # an entry that failed is no target for a position
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
    """Credits of one entry, and what is wrong with it ("" if nothing is)."""
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
    """What is wrong with the position of some objects, "" if nothing is: each stands so to each target."""
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
