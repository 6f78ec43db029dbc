"""Check that a reward means what it should: it prefers the better sample in each of its own `examples`.

A plugin may ship them as an attribute: pairs (better, worse), or a function that returns the pairs; with
aspects, a mapping from aspects to pairs. Each sample is (picture, prompt), (picture, prompt, metadata) or
(picture, prompt, metadata, condition), where the condition is the picture that the first one was edited from,
of its size. A picture is a PIL image, uint8 [H, W, 3] as an array or [3, H, W] as a tensor, or the name of a
file beside the plugin's module.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marble_cli.errors import RequestError
from marble_cli.pictures import read_picture
from marble_cli.rewards.api import Batch
from marble_cli.rewards.registry import Reward
from marble_cli.rewards.testing.calls import CheckImpossible, ContractError, score_copy


def prefers_its_examples(reward: Reward, batch: Batch) -> str:
    """Check that the better sample of each example scores higher than the worse one."""
    if reward.plugin is None:
        raise CheckImpossible("it computes in another process")
    examples = getattr(reward.plugin, "examples", None)
    examples = examples() if callable(examples) else examples
    if not examples:
        raise CheckImpossible("it ships no `examples`, so nothing shows that a better picture scores higher")
    aspects = reward.declaration.aspects
    if isinstance(examples, Mapping) != bool(aspects) or (aspects and not examples.keys() <= {*aspects}):
        expected = f"a mapping from some of {', '.join(aspects)} to pairs" if aspects else "pairs"
        raise ContractError(f"`examples` are {type(examples).__name__}. Expected {expected} (better, worse)")
    by_aspect = examples if aspects else {"": examples}
    checked = [
        _check_pair(reward, aspect, index, pair)
        for aspect, pairs in by_aspect.items()
        for index, pair in enumerate(pairs)
    ]
    return f"{len(checked)} pairs in order, {min(checked):.4g} apart at least"


def _check_pair(reward: Reward, aspect: str, index: int, pair: Any) -> float:
    """Return by how much the better sample of a pair scores higher."""
    name = f"example {index}{f' of {aspect}' if aspect else ''}"
    try:
        samples = [read_sample(reward.plugin, *sample) for sample in pair]
        first, second = samples
    except (TypeError, ValueError, RequestError) as error:
        raise ContractError(
            f"{name}: {error}. Expected two samples (picture, prompt), with metadata and the condition "
            "after them if there are any"
        ) from error
    edited = [sample.conditions is not None for sample in samples]
    if reward.declaration.needs_frames:
        raise CheckImpossible("examples are pictures, and it scores videos")
    if reward.declaration.needs_conditions and not all(edited):
        raise ContractError(
            f"{name}: the reward needs conditions. Expected samples (picture, prompt, metadata, condition)"
        )
    together = first.images.shape == second.images.shape and edited[0] == edited[1]
    batches = [_joined(first, second)] if together else samples
    scores = torch.cat([score_copy(reward, batch) for batch in batches])
    better, worse = (scores[:, reward.declaration.aspects.index(aspect)] if aspect else scores).tolist()
    if not better > worse:
        raise ContractError(f"{name}: the better sample got {better:.6g}, the worse one {worse:.6g}")
    return float(better - worse)


def _joined(first: Batch, second: Batch) -> Batch:
    images = torch.cat([first.images, second.images])
    before = [part.conditions for part in (first, second) if part.conditions is not None]
    conditions = torch.cat(before) if before else None
    return Batch(images, first.prompts + second.prompts, first.metadata + second.metadata, conditions)


def read_sample(
    plugin: Any, picture: Any, prompt: str, metadata: Mapping[str, Any] | None = None, condition: Any = None
) -> Batch:
    """Return a batch of one sample.

    Raises:
        ValueError: the condition has not the picture's size.
    """
    image = _read_picture(plugin, picture)[None]
    before = None if condition is None else _read_picture(plugin, condition)[None]
    if before is not None and before.shape != image.shape:
        raise ValueError(f"a picture is {list(image.shape[1:])} and its condition {list(before.shape[1:])}")
    return Batch(image, [prompt], [metadata or {}], before)


def _read_picture(plugin: Any, picture: Any) -> Tensor:
    """Return a picture as uint8 [3, H, W].

    Raises:
        ValueError: it is another kind of object, dtype or shape.
        RequestError: it is a file that cannot be read.
    """
    if isinstance(picture, str | Path):
        module = sys.modules[getattr(plugin, "__module__", None) or type(plugin).__module__]
        return read_picture(Path(str(module.__file__)).parent / picture)
    if isinstance(picture, Tensor):
        pixels = picture
    else:
        pixels = torch.from_numpy(
            np.array(picture.convert("RGB") if hasattr(picture, "convert") else picture)
        )
        pixels = pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels
    if pixels.dtype is not torch.uint8 or pixels.ndim != 3 or pixels.shape[0] != 3:
        raise ValueError(f"a picture is {pixels.dtype} {list(pixels.shape)}")
    return pixels.contiguous()
