"""Pair the pictures of a run's first and last evaluation, drawn from the same noise, with their scores."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from marble_cli.metrics.history import series
from marble_cli.metrics.samples import KeptSample, read_samples
from marble_cli.report.elements import number, rounded, signed, some
from marble_cli.report.reading import Run

PAIRS = 96  # in a report at most


@dataclass(frozen=True)
class Pair:
    """Two pictures of one prompt.

    Attributes:
        run: the label of the run.
        index: the place of the prompt among the held-out prompts.
        prompt, source: of both pictures.
        before, after: WebP files as data addresses.
        condition: the same of the picture that both were edited from; empty if there is none.
        steps: of the two evaluations.
        scores: (reward, before, after, change, rose or fell) each, of the rewards that scored both.
        changes: JSON, the change by reward.
        strip: whether they are strips of a video's frames.
        gain, loss: the largest change and the smallest, in standard deviations of the first evaluation.
    """

    run: str
    index: int
    prompt: str
    source: str
    before: str
    after: str
    condition: str
    steps: tuple[int, int]
    scores: Sequence[tuple[str, str, str, str, str]]
    changes: str
    strip: bool
    gain: float
    loss: float


def pairs(runs: Sequence[Run]) -> tuple[list[Pair], list[str]]:
    """Pair the kept pictures of every run; also say of which run there are none, and why."""
    found, notes = [], []
    most = max(1, PAIRS // len(runs))
    for run in runs:
        steps = [row["step"] for row in run.history.held_out]
        kept = {step: samples for step in steps if (samples := read_samples(run.folder / "samples", step))}
        if len(kept) < 2:
            why = (
                "it has had one evaluation so far"
                if kept
                else "its evaluations kept none (logging.images_every)"
            )
            notes.append(f"{run.label} has no pictures to compare: {why}.")
            continue
        first, last = min(kept), max(kept)
        after = {sample.index: sample for sample in kept[last]}
        both = [(one, after[one.index]) for one in kept[first] if _same(one, after.get(one.index))]
        found += [_pair(run, one, other, (first, last)) for one, other in some(both, most)]
    return sorted(found, key=lambda pair: pair.index), notes


def _same(one: KeptSample, other: KeptSample | None) -> bool:
    return other is not None and one.prompt == other.prompt


def _pair(run: Run, one: KeptSample, other: KeptSample, steps: tuple[int, int]) -> Pair:
    names = [name for name in (*run.trained, *run.watched) if name in one.scores and name in other.scores]
    changes = {name: other.scores[name] - one.scores[name] for name in names}
    relative = []
    for name, change in changes.items():
        deviations = series(run.history.held_out, f"reward/{name}/std")[1]
        if deviations and deviations[0] > 0:
            relative.append(rounded(change / deviations[0]))
    rows = [
        (
            name, number(one.scores[name]), number(other.scores[name]), signed(changes[name]),
            "rose" if changes[name] > 0 else "fell" if changes[name] < 0 else "undecided",
        )
        for name in names
    ]  # fmt: skip
    return Pair(
        run.label, one.index, one.prompt, one.source, _address(one.file), _address(other.file),
        _address(one.condition) if one.condition else "", steps, rows,
        json.dumps({name: rounded(change) for name, change in changes.items()}), one.strip,
        max(relative, default=0.0), min(relative, default=0.0),
    )  # fmt: skip


def _address(file: Path) -> str:
    return "data:image/webp;base64," + base64.b64encode(file.read_bytes()).decode()
