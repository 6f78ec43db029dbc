"""Does a reward keep the plugin contract? Run by `marble rewards check` and inherited by the test suites of plugins:

class TestSharpness(RewardConformance):
    plugin = "sharpness"
    options = {"radius": 2}
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import Any, ClassVar

from marble_cli.rewards.api import Batch
from marble_cli.rewards.registry import Reward, build
from marble_cli.rewards.testing import contract
from marble_cli.rewards.testing.contract import CONTRACT, NOT_GROUPWISE, CheckFunction
from marble_cli.rewards.testing.samples import sample_batch
from marble_cli.rewards.worker import called_as_in_a_run


class Outcome(Enum):
    PASS = "pass"
    FAIL = "FAIL"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Check:
    """The outcome of one check; `detail` says what was found, or why it could not be made."""

    name: str
    outcome: Outcome
    detail: str

    @property
    def passed(self) -> bool:
        return self.outcome is Outcome.PASS


def run_checks(
    reward: Reward, batch: Batch, gpu: "Callable[[], Reward] | str" = "not asked for", here: bool = True
) -> list[Check]:
    """Try everything that the contract asks for; what a reward raises is a failed check.

    It is called as in a run: in a thread of its own, under its guard. Where the first batch gets no scores, the
    other checks would say the same again, and are skipped. A groupwise reward may look at its images together, so
    what concerns the batch's composition is left out.

    Args:
        reward: as `registry.build` makes it.
        batch: samples that it applies to, e.g. from `sample_batch`.
        gpu: builds it on a GPU, or says why that cannot be.
        here: whether it computes in this process, where its memory can be seen.
    """
    asked: list[Callable[..., str]] = [
        function for function in CONTRACT if not (reward.declaration.groupwise and function in NOT_GROUPWISE)
    ]
    if not isinstance(gpu, str):
        gpu = partial(_built_as_in_a_run, gpu)
    asked.append(partial(contract.leaves_the_process_alone, here=here))
    asked += [partial(contract.same_on_another_device, gpu=gpu), contract.time_an_image]
    asked.append(partial(contract.memory_an_image, here=here))
    called = called_as_in_a_run(replace(reward, close=lambda: None))
    try:
        first = _run(asked[0], called, batch)
        if not first.passed:
            because = f"{first.name!r} comes first"
            return [first, *(Check(_name(function), Outcome.SKIPPED, because) for function in asked[1:])]
        return [first, *(_run(function, called, batch) for function in asked[1:])]
    finally:
        called.close()


def _built_as_in_a_run(build: Callable[[], Reward]) -> Reward:
    return called_as_in_a_run(build())


def _name(function: Callable[..., str]) -> str:
    function = function.func if isinstance(function, partial) else function
    return function.__name__.replace("_", " ")


def _run(function: Callable[..., str], reward: Reward, batch: Batch) -> Check:
    name = _name(function)
    try:
        return Check(name, Outcome.PASS, function(reward, batch))
    except contract.NotHere as reason:
        return Check(name, Outcome.SKIPPED, str(reason))
    except Exception as error:  # whatever a plugin may raise
        return Check(name, Outcome.FAIL, contract.said(error))


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
            built = build(self.plugin, self.plugin, self.options, self.device)
            self._built[type(self)] = called_as_in_a_run(built)
        return self._built[type(self)]

    def batch(self) -> Batch:
        """Samples that the reward applies to."""
        return sample_batch(self.reward().declaration.requires)

    def test_declares_a_license_and_a_summary(self) -> None:
        declaration = self.reward().declaration
        assert declaration.summary, "the class or function needs a docstring"
        assert declaration.license, "it needs an attribute `license`"

    def test_one_score_an_image(self) -> None:
        self._passes(contract.one_score_an_image)

    def test_answers_in_numbers(self) -> None:
        self._passes(contract.answers_in_numbers)

    def test_within_declared_range(self) -> None:
        self._passes(contract.within_declared_range)

    def test_deterministic(self) -> None:
        self._passes(contract.deterministic)

    def test_leaves_its_inputs_alone(self) -> None:
        self._passes(contract.leaves_its_inputs_alone)

    def test_leaves_the_process_alone(self) -> None:
        self._passes(contract.leaves_the_process_alone)

    def test_takes_any_batch_size(self) -> None:
        self._passes(contract.takes_any_batch_size)

    def test_takes_any_picture_size(self) -> None:
        self._passes(contract.takes_any_picture_size)

    def test_takes_pictures_as_they_come(self) -> None:
        self._passes(contract.takes_pictures_as_they_come)

    def test_survives_odd_prompts(self) -> None:
        self._passes(contract.survives_odd_prompts)

    def test_independent_of_batching(self) -> None:
        if not self.reward().declaration.groupwise:
            self._passes(contract.independent_of_batching)

    def test_follows_the_order(self) -> None:
        if not self.reward().declaration.groupwise:
            self._passes(contract.follows_the_order)

    def _passes(self, function: CheckFunction) -> None:
        check = _run(function, self.reward(), self.batch())
        assert check.passed, f"{check.name}: {check.detail}"
