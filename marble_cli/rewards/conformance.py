"""Check that a reward keeps the plugin contract, for `marble rewards check` and for the tests of plugins.

A plugin's tests inherit the checks:

    class TestSharpness(RewardConformance):
        plugin = "sharpness"
        options = {"radius": 2}

A reward with aspects may name some of them in `aspects`, as a configuration does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import Any, ClassVar

from marble_cli.rewards.api import Batch
from marble_cli.rewards.call_thread import move_calls_to_thread
from marble_cli.rewards.registry import Reward, build
from marble_cli.rewards.testing import contract, measurements
from marble_cli.rewards.testing.calls import CheckImpossible, describe_error
from marble_cli.rewards.testing.contract import CONTRACT, NOT_GROUPWISE, CheckFunction
from marble_cli.rewards.testing.examples import prefers_its_examples
from marble_cli.rewards.testing.samples import samples_for


class Outcome(Enum):
    """The outcome of a check; SKIPPED if it cannot be made or would repeat an earlier failure."""

    PASS = "pass"
    FAIL = "FAIL"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Check:
    """One check of a reward; `detail` describes what it found, or why it was skipped."""

    name: str
    outcome: Outcome
    detail: str

    @property
    def passed(self) -> bool:
        return self.outcome is Outcome.PASS


def run_checks(
    reward: Reward, batch: Batch, gpu: "Callable[[], Reward] | str" = "not asked for", here: bool = True
) -> list[Check]:
    """Make every check of the contract; whatever a reward raises is a failed check.

    The reward is called as in a run: in a thread of its own, under its guard. If the first batch gets no
    scores the other checks are skipped, because they would fail for the same reason. A groupwise reward may
    compare images, so the checks of the batch's composition are left out for it.

    Args:
        reward: as `registry.build` returns it.
        batch: samples to which it applies, e.g. from `sample_batch`.
        gpu: a function that builds it on a GPU, or the reason why that is impossible.
        here: whether it computes in this process, where its memory can be measured.
    """
    first, *others = (f for f in CONTRACT if not (reward.declaration.groupwise and f in NOT_GROUPWISE))
    move_gpu_calls = gpu if isinstance(gpu, str) else partial(_build_with_thread, gpu)
    checks: list[Callable[..., str]] = [
        *others,
        prefers_its_examples,
        partial(contract.leaves_the_process_alone, in_process=here),
        partial(contract.same_on_another_device, gpu=move_gpu_calls),
        measurements.time_an_image,
        partial(measurements.memory_an_image, in_process=here),
    ]
    threaded = move_calls_to_thread(replace(reward, close=lambda: None))
    try:
        result = _run(first, threaded, batch)
        if not result.passed:
            reason = f"{result.name!r} comes first"
            return [result, *(Check(_name(check), Outcome.SKIPPED, reason) for check in checks)]
        return [result, *(_run(check, threaded, batch) for check in checks)]
    finally:
        threaded.close()


def _build_with_thread(build: Callable[[], Reward]) -> Reward:
    return move_calls_to_thread(build())


def _name(function: Callable[..., str]) -> str:
    function = function.func if isinstance(function, partial) else function
    return function.__name__.replace("_", " ")


def _run(check: Callable[..., str], reward: Reward, batch: Batch) -> Check:
    name = _name(check)
    try:
        return Check(name, Outcome.PASS, check(reward, batch))
    except CheckImpossible as reason:
        return Check(name, Outcome.SKIPPED, str(reason))
    except Exception as error:  # a plugin may raise anything
        return Check(name, Outcome.FAIL, describe_error(error))


class RewardConformance:
    """The checks as tests, for the test suite of a plugin: a subclass names the plugin and its options.

    Override `batch` if the reward requires metadata that no embedded prompt has.
    """

    plugin: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    aspects: ClassVar[Sequence[str]] = ()
    device: ClassVar[str] = "cpu"
    _built: ClassVar[dict[type, Reward]] = {}

    @classmethod
    def teardown_class(cls) -> None:
        """Close the reward after the last test of the class; pytest calls this."""
        reward = cls._built.pop(cls, None)
        if reward is not None:
            reward.close()

    def reward(self) -> Reward:
        """Return the reward, which is built once for all tests of the class."""
        if type(self) not in self._built:
            built = build(self.plugin, self.plugin, self.options, self.device, aspects=self.aspects)
            self._built[type(self)] = move_calls_to_thread(built)
        return self._built[type(self)]

    def batch(self) -> Batch:
        """Return samples to which the reward applies."""
        declaration = self.reward().declaration
        return samples_for(declaration, declaration.requires)

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

    def test_prefers_its_examples(self) -> None:
        if getattr(self.reward().plugin, "examples", None) is not None:
            self._passes(prefers_its_examples)

    def _passes(self, function: CheckFunction) -> None:
        check = _run(function, self.reward(), self.batch())
        assert check.passed, f"{check.name}: {check.detail}"
