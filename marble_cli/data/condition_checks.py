"""Check before a run that rows name pictures if the model starts from one, and that these can be read."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from marble_cli.data.conditions import Condition
from marble_cli.data.prompts import LISTED_FAULTS, Prompt
from marble_cli.errors import DataError

MOST_THREADS = 16  # Pillow decodes in parallel


def check_conditions(
    prompts: Iterable[Prompt], model: str, *, takes: bool | None, rank: int = 0, world: int = 1
) -> None:
    """Check the pictures of prompts: there is one for each exactly if the model takes them, and all decode.

    Args:
        prompts: of any sources.
        model: `model.path`, for messages.
        takes: whether the model starts from a picture; None if that is not known, or if it also draws
            from texts alone. All prompts have a picture then, or none has.
        rank: reads every `world`-th picture, from this one on.
        world: the processes that share the reading.

    Raises:
        DataError: some rows are wrong; the message lists the first ones by source, file and line.
    """
    prompts = list(prompts)
    if takes is not None:
        wrong = [prompt for prompt in prompts if (prompt.image is not None) is not takes]
        if wrong:
            raise DataError(_missing(wrong, model) if takes else _unused(wrong, model))
    bare = [prompt for prompt in prompts if prompt.image is None]
    if 0 < len(bare) < len(prompts):
        rows = "; ".join(_listed([f"data.sources.{prompt.source}: {prompt.where}" for prompt in bare]))
        raise DataError(
            f"Some rows have a picture, and there is none in {rows}. Expected one in all rows or in none."
        )
    distinct = {_identity(p.image): p for p in prompts if p.image is not None}
    own = list(distinct.values())[rank::world]
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        faults = [
            f"data.sources.{prompt.source}: {fault}"
            for prompt, fault in zip(own, pool.map(_find_fault, own), strict=True)
            if fault is not None
        ]
    if faults:
        raise DataError(" ".join(_listed(faults)))


def _identity(condition: Condition) -> Path | str:
    """Return what rows that name the same file have in common."""
    return condition.content if isinstance(condition.content, Path) else condition.where


def _find_fault(prompt: Prompt) -> str | None:
    assert prompt.image is not None
    return prompt.image.find_fault()


def _missing(wrong: list[Prompt], model: str) -> str:
    rows = "; ".join(_listed([f"data.sources.{prompt.source}: {prompt.where}" for prompt in wrong]))
    return (
        f"model.path={model} starts from a picture, and there is none in {rows}. Expected a path below "
        f"data.root, or a picture, under the key data.sources.{wrong[0].source}.image_key."
    )


def _unused(wrong: list[Prompt], model: str) -> str:
    rows = "; ".join(_listed([f"data.sources.{prompt.source}: {prompt.where}" for prompt in wrong]))
    return (
        f"model.path={model} starts from no picture, and there is one in {rows}. Choose a model of image "
        f"editing, or set data.sources.{wrong[0].source}.image_key=null, which leaves the pictures out."
    )


def _listed(faults: list[str]) -> Iterator[str]:
    """Yield the first faults, and how many more there are."""
    yield from faults[:LISTED_FAULTS]
    if len(faults) > LISTED_FAULTS:
        yield f"and {len(faults) - LISTED_FAULTS:,} more"
