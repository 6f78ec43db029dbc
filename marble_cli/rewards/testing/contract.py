"""Check one requirement of the plugin contract per function.

A check is called with a reward and a batch. It returns a description of what it found, or raises
`ContractError`.
"""

import copy
import ctypes
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from marble_cli.errors import RewardError
from marble_cli.rewards.answers import first_failure, parse_answer
from marble_cli.rewards.api import Batch
from marble_cli.rewards.registry import Reward
from marble_cli.rewards.worker import thread_hint

TOLERANCE = 1e-5  # relative change of a score in another batch
GPU_TOLERANCE = 1e-3  # relative change of a score on another device
MANY = 24  # images in a large batch
ODD_PROMPTS = ("", " ", "a red cube " * 1000, "ein Schild „Straße“ 看板 🚦\n\t")
OTHER_SIZES = ((96, 96), (64, 128), (120, 80))  # height and width


class ContractError(Exception):
    """A reward breaks the contract; the message describes how."""


class CheckImpossible(Exception):  # noqa: N818 - no error of the reward
    """A check cannot be made on this machine or for this reward; the message gives the reason."""


def one_score_an_image(reward: Reward, batch: Batch) -> str:
    """Check that every image gets one number: finite, or NaN if the reward does not apply."""
    scores = _scores(reward, batch)
    if torch.isinf(scores).any():
        raise ContractError(
            f"image {_first(torch.isinf(scores))} got {scores[torch.isinf(scores)][0].item()}"
        )
    applicable = ~torch.isnan(scores)
    if not applicable.any():
        raise ContractError(
            f"it applies to none of the {len(scores)} samples; pass --metadata that it applies to"
        )
    lowest, highest = scores[applicable].min().item(), scores[applicable].max().item()
    return f"{int(applicable.sum())} of {len(scores)} samples scored, between {lowest:.4g} and {highest:.4g}"


def answers_in_numbers(reward: Reward, batch: Batch) -> str:
    """Check that scores are floats or integers, not complex numbers, bools or other objects."""
    answer = reward.call(_copy(batch))
    parse_answer(reward.name, answer, len(batch.images))
    scores = answer if isinstance(answer, list | tuple) else [answer]
    kinds = sorted({_kind(score) for score in scores})
    if "bool" in kinds:
        raise ContractError("scores are bool. Expected floats")
    return f"{type(answer).__name__} of {', '.join(kinds)}"


def _kind(score: Any) -> str:
    """Return the dtype of a tensor or array, or the type of another object."""
    return str(getattr(score, "dtype", type(score).__name__)).removeprefix("torch.")


def within_declared_range(reward: Reward, batch: Batch) -> str:
    """Check that all scores are within the `range` that the reward declares."""
    low, high = reward.declaration.range
    scores = _scores(reward, batch)
    outside = (scores < (-torch.inf if low is None else low)) | (
        scores > (torch.inf if high is None else high)
    )
    if outside.any():
        raise ContractError(
            f"image {_first(outside)} got {scores[outside][0].item():.6g}; declared range ({low}, {high})"
        )
    return f"({low}, {high})"


def deterministic(reward: Reward, batch: Batch) -> str:
    """Check that two calls with the same batch give exactly the same scores."""
    _same(_scores(reward, batch), _scores(reward, batch), 0.0, "twice the same batch")
    return "two calls agree exactly"


def independent_of_batching(reward: Reward, batch: Batch) -> str:
    """Check that an image's score does not depend on the other images of the batch."""
    alone = torch.cat([_scores(reward, _rows(batch, [i])) for i in range(len(batch.prompts))])
    _same(_scores(reward, batch), alone, TOLERANCE, "together and one by one")
    return f"one by one as together, to {TOLERANCE:g}"


def follows_the_order(reward: Reward, batch: Batch) -> str:
    """Check that scores are in the order of the images."""
    order = list(range(len(batch.prompts)))[::-1]
    _same(_scores(reward, batch)[order], _scores(reward, _rows(batch, order)), TOLERANCE, "in reverse order")
    return f"a reversed batch gives reversed scores, to {TOLERANCE:g}"


def leaves_its_inputs_alone(reward: Reward, batch: Batch) -> str:
    """Check that a call changes neither images nor prompts nor metadata."""
    given = _copy(batch)
    _call(reward, given)
    if not torch.equal(given.images, batch.images):
        raise ContractError("it changed the images")
    if given.prompts != batch.prompts:
        raise ContractError("it changed the prompts")
    if given.metadata != batch.metadata:
        raise ContractError("it changed the metadata")
    return "unchanged"


def leaves_the_process_alone(reward: Reward, batch: Batch, here: bool = True) -> str:
    """Check that import, build and calls leave the settings of the process and of its threads unchanged."""
    if not here:
        raise CheckImpossible("it computes in another process")
    _scores(reward, batch)
    if reward.guard.left:
        raise ContractError(
            f"it changed {', '.join(reward.guard.left.values())}; a run puts this back, and warns"
        )
    return "settings, random numbers, working directory, signals"


def takes_any_picture_size(reward: Reward, batch: Batch) -> str:
    """Check that pictures may have other sizes and need not be square."""
    for size in OTHER_SIZES:
        images = torch.nn.functional.interpolate(batch.images, size, mode="nearest-exact")
        try:
            _scores(reward, batch._replace(images=images))
        except Exception as error:
            raise ContractError(
                f"pictures of {size[0]} x {size[1]} pixels: {describe_error(error)}"
            ) from error
    return ", ".join(f"{height} x {width}" for height, width in OTHER_SIZES)


def takes_any_batch_size(reward: Reward, batch: Batch) -> str:
    """Check a batch of one image and a large batch."""
    one, many = _rows(batch, [0]), _many(batch)
    _scores(reward, one)
    _scores(reward, many)
    return f"1 and {len(many.prompts)} images"


def takes_pictures_as_they_come(reward: Reward, batch: Batch) -> str:
    """Check that black and white pictures are scored, and that the memory layout does not matter."""
    extremes = batch.images.clone()
    extremes[0::2], extremes[1::2] = 0, 255
    scores = _scores(reward, batch._replace(images=extremes))
    if torch.isinf(scores).any():
        raise ContractError("a black or white picture got an infinite score")
    strided = batch._replace(images=batch.images.to(memory_format=torch.channels_last))
    _same(
        _scores(reward, batch),
        _scores(reward, strided),
        TOLERANCE,
        "the same pictures, channels last in memory",
    )
    return "black, white, channels last in memory"


def survives_odd_prompts(reward: Reward, batch: Batch) -> str:
    """Check that an empty prompt, a very long one and other scripts cause no error and no infinite score."""
    prompts = [ODD_PROMPTS[i % len(ODD_PROMPTS)] for i in range(len(batch.prompts))]
    scores = _scores(reward, batch._replace(prompts=prompts))
    if torch.isinf(scores).any():
        raise ContractError(f"the prompt {prompts[_first(torch.isinf(scores))][:20]!r} got an infinite score")
    return f"empty, {max(map(len, prompts)):,} characters, other scripts"


def time_an_image(reward: Reward, batch: Batch) -> str:
    """Measure the time per image; this always passes."""
    _scores(reward, batch)
    start = time.perf_counter()
    _scores(reward, batch)
    return f"{(time.perf_counter() - start) / len(batch.prompts) * 1000:.1f} ms"


def memory_an_image(reward: Reward, batch: Batch, here: bool) -> str:
    """Measure peak memory per image of a large batch, on the GPU too if it is used; this always passes."""
    if not here:
        raise CheckImpossible("it computes in another process")
    many = _many(batch)
    _scores(reward, _rows(batch, [0]))  # allocates whatever is kept between calls
    cuda = torch.cuda.is_available() and torch.cuda.memory_allocated() > 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    texts = [f"{_peak_growth(lambda: _scores(reward, many)) / len(many.prompts) / 2**20:.1f} MiB"]
    if cuda:
        growth = torch.cuda.max_memory_allocated() - before
        texts.append(f"{growth / len(many.prompts) / 2**20:.1f} MiB of GPU memory")
    return f"{', '.join(texts)} in a batch of {len(many.prompts)}"


def same_on_another_device(reward: Reward, batch: Batch, gpu: "Callable[[], Reward] | str") -> str:
    """Check that the reward gives the same scores on the GPU as on the CPU."""
    if isinstance(gpu, str):
        raise CheckImpossible(gpu)
    moved = gpu()
    try:
        _same(_scores(reward, batch), _scores(moved, batch), GPU_TOLERANCE, "on the CPU and on the GPU")
    finally:
        moved.close()
    return f"the same scores, to {GPU_TOLERANCE:g}"


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


def _peak_growth(call: Callable[[], object]) -> int:
    """Return by how many bytes this process's resident memory grows at most during `call`.

    Raises:
        CheckImpossible: the system does not report the peak.
    """
    try:
        # Otherwise the call reuses memory that earlier calls freed, and nothing grows.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present value
        before = _resident("VmRSS")
    except (AttributeError, OSError) as error:
        raise CheckImpossible(f"this system does not report the peak of memory: {error}") from error
    call()
    return max(0, _resident("VmHWM") - before)


def _resident(key: str) -> int:
    """Return a row of /proc/self/status in bytes."""
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(rows[key].split()[0]) * 1024


def describe_error(error: BaseException) -> str:
    """Return the message of an error, with its type if the plugin raised it."""
    if isinstance(error, ContractError | RewardError):
        return str(error)
    return f"{type(error).__name__}: {error}{thread_hint(error)}"


def _scores(reward: Reward, batch: Batch) -> Tensor:
    """Score a copy of the batch, [B] float64, so that a reward that changes it spoils no other check."""
    return _call(reward, _copy(batch))


def _call(reward: Reward, batch: Batch) -> Tensor:
    """Score a batch, [B] float64, as a worker does.

    Raises:
        RewardError: the answer is not B numbers.
        ContractError: the reward failed on an image.
    """
    count = len(batch.images)
    answer = reward.call(batch)
    if reason := first_failure(answer):
        raise ContractError(f"it failed on an image: {describe_error(reason)}")
    return parse_answer(reward.name, answer, count)


def _copy(batch: Batch) -> Batch:
    return Batch(batch.images.clone(), list(batch.prompts), copy.deepcopy(batch.metadata))


def _rows(batch: Batch, rows: Sequence[int]) -> Batch:
    return Batch(
        batch.images[list(rows)], [batch.prompts[i] for i in rows], [batch.metadata[i] for i in rows]
    )


def _many(batch: Batch) -> Batch:
    return _rows(batch, [i % len(batch.prompts) for i in range(MANY)])


def _same(one: Tensor, other: Tensor, tolerance: float, how: str) -> None:
    differ = ~torch.isclose(one, other, rtol=tolerance, atol=tolerance / 10, equal_nan=True)
    if differ.any():
        place = _first(differ)
        raise ContractError(f"{how}: image {place} got {one[place].item():.8g} and {other[place].item():.8g}")


def _first(mask: Tensor) -> int:
    return int(mask.int().argmax())
