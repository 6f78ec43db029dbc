"""Check one requirement of the plugin contract per function.

A check is called with a reward and a batch. It returns a description of what it found, or raises
`ContractError`.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from marble_cli.rewards.answers import out_of_range, parse_aspects
from marble_cli.rewards.api import Batch
from marble_cli.rewards.batch import SeveralPicturesError
from marble_cli.rewards.call_thread import copy_batch
from marble_cli.rewards.registry import Reward
from marble_cli.rewards.testing.calls import (
    CheckImpossible,
    ContractError,
    call_reward,
    describe_error,
    place,
    repeat_samples,
    score_copy,
)

TOLERANCE = 1e-5  # relative change of a score in another batch
GPU_TOLERANCE = 1e-3  # relative change of a score on another device
ODD_PROMPTS = ("", " ", "a red cube " * 1000, "ein Schild „Straße“ 看板 🚦\n\t")
OTHER_SIZES = ((96, 96), (64, 128), (120, 80))  # height and width


def one_score_an_image(reward: Reward, batch: Batch) -> str:
    """Check that every image gets one number: finite, or NaN if the reward does not apply."""
    scores = score_copy(reward, batch)
    if (wrong := out_of_range(scores)).any():
        raise ContractError(f"{place(reward, wrong)} got {scores[wrong][0].item()}")
    applicable = ~torch.isnan(scores)
    for k, name in enumerate(reward.declaration.aspects or ("it",)):
        if not applicable.reshape(len(scores), -1)[:, k].any():
            raise ContractError(
                f"{name} applies to none of the {len(scores)} samples; pass --metadata that it applies to"
            )
    lowest, highest = scores[applicable].min().item(), scores[applicable].max().item()
    return (
        f"{int(applicable.sum())} of {scores.numel()} samples scored, between {lowest:.4g} and {highest:.4g}"
    )


def answers_in_numbers(reward: Reward, batch: Batch) -> str:
    """Check that scores are floats or integers, not complex numbers, bools or other objects."""
    answer, aspects = reward.call(copy_batch(batch)), reward.declaration.aspects
    parse_aspects(reward.name, answer, len(batch.images), aspects, aspects)
    answers = list(answer.values()) if aspects else [answer]
    kinds = sorted(
        {_kind(score) for own in answers for score in (own if isinstance(own, list | tuple) else [own])}
    )
    if "bool" in kinds:
        raise ContractError("scores are bool. Expected floats")
    return f"{type(answers[0]).__name__} of {', '.join(kinds)}"


def _kind(score: Any) -> str:
    """Return the dtype of a tensor or array, or the type of another object."""
    return str(getattr(score, "dtype", type(score).__name__)).removeprefix("torch.")


def within_declared_range(reward: Reward, batch: Batch) -> str:
    """Check that all scores are within the `range` that the reward declares."""
    scores = score_copy(reward, batch)
    aspects = reward.declaration.aspects or ("",)
    for aspect, own in zip(aspects, scores.reshape(len(scores), -1).T, strict=True):
        low, high = reward.declaration.bounds(aspect)
        outside = (own < (-torch.inf if low is None else low)) | (own > (torch.inf if high is None else high))
        if outside.any():
            raise ContractError(
                f"image {int(outside.int().argmax())} got {own[outside][0].item():.6g}"
                f"{f' in {aspect}' if aspect else ''}; declared range ({low}, {high})"
            )
    bounds = dict.fromkeys(reward.declaration.bounds(aspect) for aspect in aspects)
    return "it declares none" if [*bounds] == [(None, None)] else ", ".join(map(str, bounds))


def deterministic(reward: Reward, batch: Batch) -> str:
    """Check that two calls with the same batch give exactly the same scores."""
    _require_same(reward, score_copy(reward, batch), score_copy(reward, batch), 0.0, "twice the same batch")
    return "two calls agree exactly"


def independent_of_batching(reward: Reward, batch: Batch) -> str:
    """Check that an image's score does not depend on the other images of the batch."""
    alone = torch.cat([score_copy(reward, batch.rows([i])) for i in range(len(batch.prompts))])
    _require_same(reward, score_copy(reward, batch), alone, TOLERANCE, "together and one by one")
    return f"one by one as together, to {TOLERANCE:g}"


def follows_the_order(reward: Reward, batch: Batch) -> str:
    """Check that scores are in the order of the images."""
    order = list(range(len(batch.prompts)))[::-1]
    _require_same(
        reward,
        score_copy(reward, batch)[order],
        score_copy(reward, batch.rows(order)),
        TOLERANCE,
        "in reverse order",
    )
    return f"a reversed batch gives reversed scores, to {TOLERANCE:g}"


def leaves_its_inputs_alone(reward: Reward, batch: Batch) -> str:
    """Check that a call changes neither images nor prompts, metadata, conditions or frames."""
    given = copy_batch(batch)
    call_reward(reward, given)
    for name in ("images", "conditions", "frames"):
        now, before = getattr(given, name), getattr(batch, name)
        if now is not None and before is not None and not torch.equal(now, before):
            raise ContractError(f"it changed the {name}")
    if given.prompts != batch.prompts:
        raise ContractError("it changed the prompts")
    if given.metadata != batch.metadata:
        raise ContractError("it changed the metadata")
    return "unchanged"


def leaves_the_process_alone(reward: Reward, batch: Batch, in_process: bool = True) -> str:
    """Check that import, build and calls leave the settings of the process and of its threads unchanged."""
    if not in_process:
        raise CheckImpossible("it computes in another process")
    score_copy(reward, batch)
    if reward.guard.left:
        raise ContractError(
            f"it changed {', '.join(reward.guard.left.values())}; a run puts this back, and warns"
        )
    return "settings, random numbers, working directory, signals"


def takes_any_picture_size(reward: Reward, batch: Batch) -> str:
    """Check that pictures may have other sizes and need not be square."""
    for size in OTHER_SIZES:
        try:
            score_copy(reward, _with_pictures(batch, partial(interpolate, size=size, mode="nearest-exact")))
        except Exception as error:
            raise ContractError(
                f"pictures of {size[0]} x {size[1]} pixels: {describe_error(error)}"
            ) from error
    return ", ".join(f"{height} x {width}" for height, width in OTHER_SIZES)


def takes_any_batch_size(reward: Reward, batch: Batch) -> str:
    """Check a batch of one image and a large batch."""
    one, many = batch.rows([0]), repeat_samples(batch)
    score_copy(reward, one)
    score_copy(reward, many)
    return f"1 and {len(many.prompts)} images"


def takes_pictures_as_they_come(reward: Reward, batch: Batch) -> str:
    """Check that black and white pictures are scored, and that the memory layout does not matter.

    A reward that takes conditions or frames and does not need them is also called without, and one that takes
    references with several for each image.
    """
    extremes = batch.images.clone()
    extremes[0::2], extremes[1::2] = 0, 255
    still = None if batch.frames is None else extremes[:, None].expand(batch.frames.shape)
    scores = score_copy(reward, batch._replace(images=extremes, frames=still))
    if torch.isinf(scores).any():
        raise ContractError("a black or white picture got an infinite score")
    strided = _with_pictures(batch, lambda pictures: pictures.to(memory_format=torch.channels_last))
    _require_same(
        reward,
        score_copy(reward, batch),
        score_copy(reward, strided),
        TOLERANCE,
        "the same pictures, channels last in memory",
    )
    declaration, found = reward.declaration, "black, white, channels last in memory"
    if batch.conditions is not None and not declaration.needs_conditions:
        score_copy(reward, batch._replace(conditions=None))
        found += ", with and without conditions"
    if batch.frames is not None and not declaration.needs_frames:
        score_copy(reward, batch._replace(frames=None))
        found += ", with and without frames"
    if batch.conditions is not None and declaration.takes_references:
        several = [[picture, picture[:, ::2]] for picture in batch.conditions]
        with suppress(SeveralPicturesError):  # of a reward that is given the whole batch
            score_copy(reward, batch._replace(references=several))
            found += ", several pictures for each image"
    return found


def survives_odd_prompts(reward: Reward, batch: Batch) -> str:
    """Check that an empty prompt, a very long one and other scripts cause no error and no infinite score."""
    prompts = [ODD_PROMPTS[i % len(ODD_PROMPTS)] for i in range(len(batch.prompts))]
    scores = score_copy(reward, batch._replace(prompts=prompts))
    if torch.isinf(scores).any():
        prompt = prompts[int(torch.isinf(scores).nonzero()[0][0])]
        raise ContractError(f"the prompt {prompt[:20]!r} got an infinite score")
    return f"empty, {max(map(len, prompts)):,} characters, other scripts"


def same_on_another_device(reward: Reward, batch: Batch, gpu: "Callable[[], Reward] | str") -> str:
    """Check that the reward gives the same scores on the GPU as on the CPU."""
    if isinstance(gpu, str):
        raise CheckImpossible(gpu)
    moved = gpu()
    try:
        _require_same(
            reward,
            score_copy(reward, batch),
            score_copy(moved, batch),
            GPU_TOLERANCE,
            "on the CPU and on the GPU",
        )
    finally:
        moved.close()
    return f"the same scores, to {GPU_TOLERANCE:g}"


def _with_pictures(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """Return the batch with its images changed, and its conditions and frames likewise."""
    before, frames = batch.conditions, batch.frames
    if frames is not None:
        frames = change(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
    conditions = None if before is None else change(before)
    return batch._replace(images=change(batch.images), conditions=conditions, frames=frames)


CheckFunction = Callable[[Reward, Batch], str]
CONTRACT: tuple[CheckFunction, ...] = (
    one_score_an_image,
    answers_in_numbers,
    within_declared_range,
    deterministic,
    independent_of_batching,
    follows_the_order,
    takes_any_batch_size,
    takes_any_picture_size,
    takes_pictures_as_they_come,
    survives_odd_prompts,
    leaves_its_inputs_alone,
)
NOT_GROUPWISE: tuple[CheckFunction, ...] = (independent_of_batching, follows_the_order)


def _require_same(reward: Reward, one: Tensor, other: Tensor, tolerance: float, how: str) -> None:
    differ = ~torch.isclose(one, other, rtol=tolerance, atol=tolerance / 10, equal_nan=True)
    if differ.any():
        before, after = one[differ][0].item(), other[differ][0].item()
        raise ContractError(f"{how}: {place(reward, differ)} got {before:.8g} and {after:.8g}")
