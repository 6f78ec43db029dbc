"""Does a reward keep the plugin contract? Run by `marble rewards check` and inherited by the test suites of plugins:

class TestSharpness(RewardConformance):
    plugin = "sharpness"
    options = {"radius": 2}
"""

import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, ClassVar

import torch
from torch import Tensor

from marble_cli.errors import ConfigError, RewardError
from marble_cli.rewards.api import Batch
from marble_cli.rewards.registry import Reward, build
from marble_cli.rewards.scorer import checked, failure

TOLERANCE = 1e-5  # relative; what the batch's composition may change
SIDE = 64  # pixels of a sample picture
OTHER_SIZES = ((96, 96), (64, 128), (120, 80))  # height and width


@dataclass(frozen=True)
class Check:
    """The outcome of one check; `detail` says what was found."""

    name: str
    passed: bool
    detail: str


class ContractError(Exception):
    """A reward does not keep the contract; the message says how."""


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


def takes_any_picture_size(reward: Reward, batch: Batch) -> str:
    """Pictures may be of another size, and need not be square."""
    for size in OTHER_SIZES:
        images = torch.nn.functional.interpolate(batch.images, size, mode="nearest-exact")
        try:
            _scores(reward, batch._replace(images=images))
        except Exception as error:
            raise ContractError(f"pictures of {size[0]} x {size[1]} pixels: {_said(error)}") from error
    return ", ".join(f"{height} x {width}" for height, width in OTHER_SIZES)


def time_an_image(reward: Reward, batch: Batch) -> str:
    """How long an image takes; always passes."""
    _scores(reward, batch)
    start = time.perf_counter()
    _scores(reward, batch)
    return f"{(time.perf_counter() - start) / len(batch.prompts) * 1000:.1f} ms"


CheckFunction = Callable[[Reward, Batch], str]
EVERY: tuple[CheckFunction, ...] = (
    one_score_an_image, within_declared_range, deterministic, leaves_its_inputs_alone, takes_any_picture_size,
    time_an_image,
)  # fmt: skip
NOT_GROUPWISE: tuple[CheckFunction, ...] = (independent_of_batching, follows_the_order)


def run_checks(reward: Reward, batch: Batch) -> list[Check]:
    """Try everything that the contract asks for; what a reward raises is a failed check.

    A groupwise reward may look at its images together, so what concerns the batch's composition is left out.

    Args:
        reward: as `registry.build` makes it.
        batch: samples that it applies to, e.g. from `sample_batch`.
    """
    asked = EVERY if reward.declaration.groupwise else (*EVERY[:3], *NOT_GROUPWISE, *EVERY[3:])
    return [_run(function, reward, batch) for function in asked]


def _run(function: CheckFunction, reward: Reward, batch: Batch) -> Check:
    name = function.__name__.replace("_", " ")
    try:
        return Check(name, True, function(reward, batch))
    except Exception as error:  # whatever a plugin may raise
        return Check(name, False, _said(error))


def _said(error: Exception) -> str:
    return (
        str(error) if isinstance(error, ContractError | RewardError) else f"{type(error).__name__}: {error}"
    )


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
    with torch.inference_mode():
        answer = reward.call(batch)
    if reason := failure(answer):
        raise ContractError(f"it failed on an image: {_said(reason)}")
    return checked(reward.name, answer, count)


def _copy(batch: Batch) -> Batch:
    return Batch(batch.images.clone(), list(batch.prompts), copy.deepcopy(batch.metadata))


def _rows(batch: Batch, rows: Sequence[int]) -> Batch:
    return Batch(
        batch.images[list(rows)], [batch.prompts[i] for i in rows], [batch.metadata[i] for i in rows]
    )


def _same(one: Tensor, other: Tensor, tolerance: float, how: str) -> None:
    differ = ~torch.isclose(one, other, rtol=tolerance, atol=tolerance / 10, equal_nan=True)
    if differ.any():
        place = _first(differ)
        raise ContractError(f"{how}: image {place} got {one[place].item():.8g} and {other[place].item():.8g}")


def _first(mask: Tensor) -> int:
    return int(mask.int().argmax())


def sample_batch(requires: Sequence[str]) -> Batch:
    """Six pictures with prompts whose metadata has the keys `requires`, always the same.

    Pictures are uint8 [6, 3, 64, 64]: flat, a gradient, noise, and rectangles on a ground. Prompts come in turn from
    the embedded prompt files that have such metadata.

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
    return Batch(images, [row["prompt"] for row in chosen], metadata)


def _embedded_prompts() -> list[list[dict[str, Any]]]:
    """Held-out rows of each embedded prompt source."""
    folder = files("marble_cli") / "assets" / "tiny" / "prompts"
    if not folder.is_dir():
        raise ConfigError(f"{folder} is missing: this installation lacks its prompt files. Reinstall marble.")
    sources = sorted((entry for entry in folder.iterdir() if entry.is_dir()), key=lambda entry: entry.name)
    texts = [(source / "test.jsonl").read_text("utf-8") for source in sources]
    return [[json.loads(line) for line in text.splitlines()] for text in texts]


def _pictures() -> Iterator[Tensor]:
    """Six pictures uint8 [3, 64, 64]."""
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


class RewardConformance:
    """The checks as tests, for a plugin's own suite; name the plugin and its options in a subclass.

    `batch` may be overridden, for a reward that needs metadata which no embedded prompt has.
    """

    plugin: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    device: ClassVar[str] = "cpu"
    _built: ClassVar[dict[type, Reward]] = {}

    def reward(self) -> Reward:
        """The reward, built once for all tests of the class."""
        if type(self) not in self._built:
            self._built[type(self)] = build(self.plugin, self.plugin, self.options, self.device)
        return self._built[type(self)]

    def batch(self) -> Batch:
        """Samples that the reward applies to."""
        return sample_batch(self.reward().declaration.requires)

    def test_declares_a_license_and_a_summary(self) -> None:
        declaration = self.reward().declaration
        assert declaration.summary, "the class or function needs a docstring"
        assert declaration.license, "it needs an attribute `license`"

    def test_one_score_an_image(self) -> None:
        self._passes(one_score_an_image)

    def test_within_declared_range(self) -> None:
        self._passes(within_declared_range)

    def test_deterministic(self) -> None:
        self._passes(deterministic)

    def test_leaves_its_inputs_alone(self) -> None:
        self._passes(leaves_its_inputs_alone)

    def test_takes_any_picture_size(self) -> None:
        self._passes(takes_any_picture_size)

    def test_independent_of_batching(self) -> None:
        if not self.reward().declaration.groupwise:
            self._passes(independent_of_batching)

    def test_follows_the_order(self) -> None:
        if not self.reward().declaration.groupwise:
            self._passes(follows_the_order)

    def _passes(self, function: CheckFunction) -> None:
        check = _run(function, self.reward(), self.batch())
        assert check.passed, f"{check.name}: {check.detail}"
