"""What the plugin contract asks of a reward: functions of a reward and a batch that say what they found, or raise."""

import copy
import ctypes
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from marble_cli.errors import RewardError
from marble_cli.rewards.answers import checked, failure
from marble_cli.rewards.api import Batch
from marble_cli.rewards.registry import Reward
from marble_cli.rewards.worker import of_threads

TOLERANCE = 1e-5  # relative; what the batch's composition may change
GPU_TOLERANCE = 1e-3  # relative; what another device may change
MANY = 24  # images of a larger batch
ODD_PROMPTS = ("", " ", "a red cube " * 1000, "ein Schild „Straße“ 看板 🚦\n\t")
OTHER_SIZES = ((96, 96), (64, 128), (120, 80))  # height and width


class ContractError(Exception):
    """A reward does not keep the contract; the message says how."""


class NotHere(Exception):  # noqa: N818 - it is no error
    """A check cannot be made here; the message says why."""


def one_score_an_image(reward: Reward, batch: Batch) -> str:
    """Each image gets one number: finite, or NaN where the reward does not apply."""
    scores = _scores(reward, batch)
    if torch.isinf(scores).any():
        raise ContractError(
            f"image {_first(torch.isinf(scores))} got {scores[torch.isinf(scores)][0].item()}"
        )
    applicable = ~torch.isnan(scores)
    if not applicable.any():
        raise ContractError(
            f"it applies to none of the {len(scores)} samples; show it some that it applies to"
        )
    lowest, highest = scores[applicable].min().item(), scores[applicable].max().item()
    return f"{int(applicable.sum())} of {len(scores)} samples scored, between {lowest:.4g} and {highest:.4g}"


def answers_in_numbers(reward: Reward, batch: Batch) -> str:
    """Scores are floating or whole numbers, not complex ones, truth values or objects."""
    answer = reward.call(_copy(batch))
    checked(reward.name, answer, len(batch.images))
    scores = answer if isinstance(answer, list | tuple) else [answer]
    kinds = sorted({_kind(score) for score in scores})
    if "bool" in kinds:
        raise ContractError("scores are bool. Expected floats")
    return f"{type(answer).__name__} of {', '.join(kinds)}"


def _kind(score: Any) -> str:
    """The dtype of a tensor or array, else the type."""
    return str(getattr(score, "dtype", type(score).__name__)).removeprefix("torch.")


def within_declared_range(reward: Reward, batch: Batch) -> str:
    """No score lies outside the `range` that the reward declares."""
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
    """Two calls with the same batch give exactly the same scores."""
    _same(_scores(reward, batch), _scores(reward, batch), 0.0, "twice the same batch")
    return "two calls agree exactly"


def independent_of_batching(reward: Reward, batch: Batch) -> str:
    """An image's score does not depend on the images beside it."""
    alone = torch.cat([_scores(reward, _rows(batch, [i])) for i in range(len(batch.prompts))])
    _same(_scores(reward, batch), alone, TOLERANCE, "together and one by one")
    return f"one by one as together, to {TOLERANCE:g}"


def follows_the_order(reward: Reward, batch: Batch) -> str:
    """Scores come in the order of the images."""
    order = list(range(len(batch.prompts)))[::-1]
    _same(_scores(reward, batch)[order], _scores(reward, _rows(batch, order)), TOLERANCE, "in reverse order")
    return f"a reversed batch gives reversed scores, to {TOLERANCE:g}"


def leaves_its_inputs_alone(reward: Reward, batch: Batch) -> str:
    """Images, prompts and metadata are the same after the call."""
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
    """After it is imported, built and called, the process's and its thread's settings are what they were."""
    if not here:
        raise NotHere("it computes in another process")
    _scores(reward, batch)
    if reward.guard.left:
        raise ContractError(
            f"it changed {', '.join(reward.guard.left.values())}; a run puts this back, and warns"
        )
    return "settings, random numbers, working directory, signals"


def takes_any_picture_size(reward: Reward, batch: Batch) -> str:
    """Pictures may be of another size, and need not be square."""
    for size in OTHER_SIZES:
        images = torch.nn.functional.interpolate(batch.images, size, mode="nearest-exact")
        try:
            _scores(reward, batch._replace(images=images))
        except Exception as error:
            raise ContractError(f"pictures of {size[0]} x {size[1]} pixels: {said(error)}") from error
    return ", ".join(f"{height} x {width}" for height, width in OTHER_SIZES)


def takes_any_batch_size(reward: Reward, batch: Batch) -> str:
    """One image, and more than a plugin may have thought of."""
    one, many = _rows(batch, [0]), _many(batch)
    _scores(reward, one)
    _scores(reward, many)
    return f"1 and {len(many.prompts)} images"


def takes_pictures_as_they_come(reward: Reward, batch: Batch) -> str:
    """Pictures are uint8: black and white ones are scored, and how they lie in memory does not matter."""
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
    """An empty or very long prompt, or one in any script, gets a finite score or none; it is no reason to raise."""
    prompts = [ODD_PROMPTS[i % len(ODD_PROMPTS)] for i in range(len(batch.prompts))]
    scores = _scores(reward, batch._replace(prompts=prompts))
    if torch.isinf(scores).any():
        raise ContractError(f"the prompt {prompts[_first(torch.isinf(scores))][:20]!r} got an infinite score")
    return f"empty, {max(map(len, prompts)):,} characters, other scripts"


def time_an_image(reward: Reward, batch: Batch) -> str:
    """How long an image takes; always passes."""
    _scores(reward, batch)
    start = time.perf_counter()
    _scores(reward, batch)
    return f"{(time.perf_counter() - start) / len(batch.prompts) * 1000:.1f} ms"


def memory_an_image(reward: Reward, batch: Batch, here: bool) -> str:
    """How much memory an image of a larger batch takes at most, on the GPU too if it is used; always passes."""
    if not here:
        raise NotHere("it computes in another process")
    many = _many(batch)
    _scores(reward, _rows(batch, [0]))  # what is allocated once is there already
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
    """Built on the GPU it gives the scores that it gives here."""
    if isinstance(gpu, str):
        raise NotHere(gpu)
    moved = gpu()
    try:
        _same(_scores(reward, batch), _scores(moved, batch), GPU_TOLERANCE, "on the CPU and on the GPU")
    finally:
        moved.close()
    return f"the same scores, to {GPU_TOLERANCE:g}"


CheckFunction = Callable[[Reward, Batch], str]
CONTRACT: tuple[CheckFunction, ...] = (
    one_score_an_image, answers_in_numbers, within_declared_range, deterministic, independent_of_batching,
    follows_the_order, takes_any_batch_size, takes_any_picture_size, takes_pictures_as_they_come, survives_odd_prompts,
    leaves_its_inputs_alone,
)  # fmt: skip
NOT_GROUPWISE: tuple[CheckFunction, ...] = (independent_of_batching, follows_the_order)


def _peak_growth(call: Callable[[], object]) -> int:
    """Bytes by which this process's resident memory during `call` exceeds what it was before.

    Raises:
        NotHere: the system does not tell.
    """
    try:
        # Else the call fills what earlier ones left behind, and grows nothing.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is the present from here on
        before = _resident("VmRSS")
    except (AttributeError, OSError) as error:
        raise NotHere(f"this system does not tell the peak of memory: {error}") from error
    call()
    return max(0, _resident("VmHWM") - before)


def _resident(key: str) -> int:
    """Bytes of a row of /proc/self/status."""
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(rows[key].split()[0]) * 1024


def said(error: BaseException) -> str:
    if isinstance(error, ContractError | RewardError):
        return str(error)
    return f"{type(error).__name__}: {error}{of_threads(error)}"


def _scores(reward: Reward, batch: Batch) -> Tensor:
    """Scores [B] float64 of a copy of the batch, so that a reward that writes on it spoils no other check."""
    return _call(reward, _copy(batch))


def _call(reward: Reward, batch: Batch) -> Tensor:
    """Scores [B] float64 of a batch, called as the host does.

    Raises:
        RewardError: the answer is not B numbers.
        ContractError: it reports a failure.
    """
    count = len(batch.images)
    answer = reward.call(batch)
    if reason := failure(answer):
        raise ContractError(f"it failed on an image: {said(reason)}")
    return checked(reward.name, answer, count)


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
