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
    prompts: Iterable[Prompt], model: str, least: int, most: int | None, *, rank: int = 0, world: int = 1
) -> None:
    """Check the pictures of prompts: each has as many as the model takes, and all decode.

    Args:
        prompts: of any sources.
        model: `model.path`, for messages.
        least: 1 if the model needs a picture. Otherwise all prompts have pictures, or none has.
        most: the pictures that it takes for a prompt; None for any number.
        rank: reads every `world`-th picture, from this one on.
        world: the processes that share the reading.

    Raises:
        DataError: some rows are wrong; the message lists the first ones by source, file and line.
    """
    prompts = list(prompts)
    if wrong := [prompt for prompt in prompts if len(prompt.images) < least]:
        raise DataError(_missing(wrong, model))
    if wrong := [prompt for prompt in prompts if most is not None and len(prompt.images) > most]:
        raise DataError(_too_many(wrong, model, most) if most else _unused(wrong, model))
    bare = [prompt for prompt in prompts if not prompt.images]
    if 0 < len(bare) < len(prompts):
        raise DataError(
            f"Some rows have a picture, and there is none in {_rows(bare)}. Expected one in all rows or in "
            "none."
        )
    distinct = {_identity(image): (prompt.source, image) for prompt in prompts for image in prompt.images}
    own = list(distinct.values())[rank::world]
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda row: row[1].find_fault(), own)
        faults = [
            f"data.sources.{source}: {fault}"
            for (source, _), fault in zip(own, found, strict=True)
            if fault is not None
        ]
    if faults:
        raise DataError(" ".join(_listed(faults)))


def _identity(condition: Condition) -> Path | str:
    """Return what rows that name the same file have in common."""
    return condition.content if isinstance(condition.content, Path) else condition.where


def _missing(wrong: list[Prompt], model: str) -> str:
    return (
        f"model.path={model} starts from a picture, and there is none in {_rows(wrong)}. Expected a path "
        f"below data.root, or a picture, under the key data.sources.{wrong[0].source}.image_key."
    )


def _unused(wrong: list[Prompt], model: str) -> str:
    return (
        f"model.path={model} starts from no picture, and there is one in {_rows(wrong)}. Choose a model of "
        f"image editing, or set data.sources.{wrong[0].source}.image_key=null, which leaves the pictures out."
    )


def _too_many(wrong: list[Prompt], model: str, most: int) -> str:
    return (
        f"model.path={model} starts from {most} picture per prompt, and there are more in {_rows(wrong)}. "
        "Expected one in each row, or a model that takes several: qwen_image_edit, flux2 or flux2_klein."
    )


def _rows(prompts: list[Prompt]) -> str:
    """Name the rows of the first prompts."""
    return "; ".join(_listed([f"data.sources.{prompt.source}: {prompt.where}" for prompt in prompts]))


def _listed(faults: list[str]) -> Iterator[str]:
    """Yield the first faults, and how many more there are."""
    yield from faults[:LISTED_FAULTS]
    if len(faults) > LISTED_FAULTS:
        yield f"and {len(faults) - LISTED_FAULTS:,} more"
