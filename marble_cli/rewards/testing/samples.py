"""Make the pictures and prompts on which rewards are checked."""

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from marble_cli.errors import ConfigError
from marble_cli.rewards.api import Batch, Declaration

SIDE = 64  # pixels of a sample picture


def sample_batch(requires: Sequence[str], *, conditions: bool = False, frames: bool = False) -> Batch:
    """Return six pictures with prompts whose metadata has the keys `requires`, the same in every call.

    The pictures are uint8 [6, 3, 64, 64]: flat, a gradient, noise, and rectangles on a background. The
    prompts are taken in turn from the embedded prompt files that have such metadata. With `conditions`, the
    first three pictures were edited from themselves and each of the others from its neighbour. With `frames`,
    they are the middle ones of videos of five frames, in which they move to the right.

    Raises:
        ConfigError: no embedded prompt has these keys.
    """
    images = torch.stack(list(_pictures()))
    sources = [rows for rows in _embedded_prompts() if rows and all(key in rows[0] for key in requires)]
    if not sources:
        raise ConfigError(
            f"no embedded prompt has metadata {', '.join(map(repr, requires))}. Pass some: --metadata "
            f"'{json.dumps(dict.fromkeys(requires, '...'))}'."
        )
    chosen = [sources[i % len(sources)][i // len(sources)] for i in range(len(images))]
    metadata: list[Mapping[str, Any]] = [
        {key: value for key, value in row.items() if key != "prompt"} for row in chosen
    ]
    before = torch.cat([images[:3], images[3:].roll(1, 0)]) if conditions else None
    moving = torch.stack([images.roll(4 * place, 3) for place in range(-2, 3)], 1) if frames else None
    return Batch(images, [row["prompt"] for row in chosen], metadata, before, moving)


def samples_for(declaration: Declaration, requires: Sequence[str]) -> Batch:
    """Return a `sample_batch` with all that a reward takes."""
    return sample_batch(requires, conditions=declaration.takes_conditions, frames=declaration.takes_frames)


def _embedded_prompts() -> list[list[dict[str, Any]]]:
    """Read the held-out rows of each embedded prompt source."""
    folder = files("marble_cli") / "assets" / "tiny" / "prompts"
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is missing: this installation lacks its prompt files. Reinstall marble-cli."
        )
    sources = sorted((entry for entry in folder.iterdir() if entry.is_dir()), key=lambda entry: entry.name)
    texts = [(source / "test.jsonl").read_text("utf-8") for source in sources]
    return [[json.loads(line) for line in text.splitlines()] for text in texts]


def _pictures() -> Iterator[Tensor]:
    """Yield six pictures uint8 [3, 64, 64]."""
    ramp = torch.linspace(0, 255, SIDE)
    flat = torch.tensor([200.0, 90.0, 40.0])[:, None, None].expand(3, SIDE, SIDE)
    yield flat.byte()
    yield torch.stack(
        [ramp.expand(SIDE, SIDE), ramp[:, None].expand(SIDE, SIDE), 255 - ramp.expand(SIDE, SIDE)]
    ).byte()
    yield torch.randint(
        0, 256, (3, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    for count in (1, 2, 3):
        picture = torch.full((3, SIDE, SIDE), 235, dtype=torch.uint8)
        for index in range(count):
            left = 4 + 20 * index
            color = torch.tensor([(214, 48, 49), (46, 160, 67), (45, 96, 214)][index], dtype=torch.uint8)
            picture[:, 24:40, left : left + 16] = color[:, None, None]
        yield picture
