"""The conformance suite finds what is wrong with a reward, and nothing wrong with a good one."""

import dataclasses
import gc
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from marble_cli.errors import ConfigError
from marble_cli.rewards.api import Batch
from marble_cli.rewards.conformance import Check, Outcome, RewardConformance, run_checks
from marble_cli.rewards.registry import build
from marble_cli.rewards.testing.samples import sample_batch
from tests.distributed.processes import ends, forks

Install = Callable[..., None]


def outcomes(plugin: str, **options: Any) -> dict[str, Check]:
    reward = build("mine", plugin, options, "cpu")
    return {check.name: check for check in run_checks(reward, sample_batch(reward.declaration.requires))}


@pytest.mark.parametrize(
    ("plugin", "options"),
    [
        ("brightness", {}),
        ("whole_batch", {}),
        ("by_keyword", {}),
        ("Scaled", {"scale": 2.0}),
        ("AnyOption", {}),
    ],
)
def test_a_good_reward_passes(install: Install, plugin: str, options: dict[str, Any]) -> None:
    install(mine=plugin)
    checks = outcomes("mine", **options)
    assert len(checks) == 16
    left_out = {"same on another device", "prefers its examples"}
    assert {name for name, check in checks.items() if not check.passed} == left_out, checks
    assert checks["same on another device"] == Check(
        "same on another device", Outcome.SKIPPED, "not asked for"
    )


@pytest.mark.parametrize(
    ("plugin", "options", "check", "detail"),
    [
        ("Returns", {"kind": "short"}, "one score an image", "shape [5] for 6 images"),
        ("Returns", {"kind": "words"}, "one score an image", "returned list instead of 6 numbers"),
        ("infinite", {}, "one score an image", "image 1 got inf"),
        ("FailsInPart", {}, "one score an image", "it failed on an image: ValueError: could not convert"),
        ("never_applies", {}, "one score an image", "applies to none of the 6 samples"),
        ("Raises", {"times": 99}, "one score an image", "RuntimeError: out of memory"),
        ("OutOfRange", {}, "within declared range", "declared range (0.0, 1.0)"),
        ("Drifts", {}, "deterministic", "twice the same batch: image 0 got"),
        ("standardised", {}, "independent of batching", "together and one by one: image 0 got"),
        ("ascending", {}, "follows the order", "in reverse order: image 0 got"),
        ("blackens", {}, "leaves its inputs alone", "it changed the images"),
        ("drops", {}, "leaves its inputs alone", "it changed the prompts"),
        ("pops", {}, "leaves its inputs alone", "it changed the metadata"),
        ("only_square", {}, "takes any picture size", "pictures of 96 x 96 pixels"),
        ("truths", {}, "answers in numbers", "scores are bool"),
        ("few", {}, "takes any batch size", "ValueError: too many images"),
        ("flat_view", {}, "takes pictures as they come", "RuntimeError: view size"),
        ("darkness", {}, "takes pictures as they come", "a black or white picture got an infinite score"),
        ("first_word", {}, "survives odd prompts", "IndexError: list index out of range"),
        ("endless", {}, "survives odd prompts", "the prompt 'a red cube a red cub' got an infinite score"),
    ],
)
def test_a_broken_reward_fails_the_check_of_its_defect(
    install: Install, plugin: str, options: dict[str, Any], check: str, detail: str
) -> None:
    install(mine=f"faulty_plugins:{plugin}")
    found = outcomes("mine", **options)[check]
    assert found.outcome is Outcome.FAIL
    assert detail in found.detail


@pytest.mark.parametrize(
    ("plugin", "only"),
    [
        ("standardised", {"independent of batching"}),
        ("OutOfRange", {"within declared range"}),
        ("only_square", {"takes any picture size"}),
        ("few", {"takes any batch size", "memory an image"}),
        ("flat_view", {"takes pictures as they come"}),
        ("first_word", {"survives odd prompts"}),
        (
            "Drifts",
            {"deterministic", "independent of batching", "follows the order", "takes pictures as they come"},
        ),
    ],
)
def test_a_broken_reward_passes_all_other_checks(install: Install, plugin: str, only: set[str]) -> None:
    install(mine=f"faulty_plugins:{plugin}")
    assert {name for name, check in outcomes("mine").items() if check.outcome is Outcome.FAIL} == only


def test_a_reward_without_scores_skips_the_other_checks(install: Install) -> None:
    install(mine="Raises")
    checks = outcomes("mine", times=1)  # it would pass the others
    assert checks.pop("one score an image").outcome is Outcome.FAIL
    assert len(checks) == 15
    assert {(check.outcome, check.detail) for check in checks.values()} == {
        (Outcome.SKIPPED, "'one score an image' comes first")
    }


def test_a_reward_of_whole_groups_may_depend_on_its_batch(install: Install) -> None:
    install(mine="faulty_plugins:WholeGroups")
    checks = outcomes("mine")
    assert len(checks) == 14
    assert "independent of batching" not in checks
    assert not any(check.outcome is Outcome.FAIL for check in checks.values())


def test_memory_is_measured_per_image(install: Install) -> None:
    install(hungry="faulty_plugins:hungry", lean="brightness")
    amounts = {plugin: outcomes(plugin)["memory an image"].detail for plugin in ("hungry", "lean")}
    assert 7.9 < float(amounts["hungry"].removesuffix(" MiB in a batch of 24")) < 9
    assert float(amounts["lean"].removesuffix(" MiB in a batch of 24")) < 1


def test_the_memory_of_a_reward_in_another_process_is_not_measured(install: Install) -> None:
    install(mine="brightness")
    checks = run_checks(build("mine", "mine", {}, "cpu"), sample_batch(()), here=False)
    assert checks[-1] == Check("memory an image", Outcome.SKIPPED, "it computes in another process")


def test_another_device_gives_the_same_scores(install: Install) -> None:
    install(mine="Scaled")
    closed = []

    def moved(scale: float) -> Check:
        reward = build("mine", "mine", {"scale": scale}, "cpu")
        gpu = dataclasses.replace(reward, close=lambda: closed.append(scale))
        one = build("mine", "mine", {"scale": 1.0}, "cpu")
        return run_checks(one, sample_batch(("text",)), lambda: gpu)[-3]

    assert moved(1.0001).outcome is Outcome.PASS
    assert moved(1.01).detail.startswith("on the CPU and on the GPU: image 0 got")
    assert moved(1.01).outcome is Outcome.FAIL
    assert closed == [1.0001, 1.01, 1.01]


def test_checks_do_not_change_the_batch(install: Install) -> None:
    install(mine="faulty_plugins:blackens")
    reward = build("mine", "mine", {}, "cpu")
    batch = sample_batch(())
    run_checks(reward, batch)
    assert torch.equal(batch.images, sample_batch(()).images)


@pytest.mark.parametrize("requires", [(), ("text",), ("include",)])
def test_samples_have_the_required_metadata(requires: tuple[str, ...]) -> None:
    batch = sample_batch(requires)
    assert batch.images.shape == (6, 3, 64, 64)
    assert batch.images.dtype == torch.uint8
    assert len({image.numpy().tobytes() for image in batch.images}) == 6
    assert len(set(batch.prompts)) == 6
    assert all(key in metadata for metadata in batch.metadata for key in requires)
    assert all("prompt" not in metadata for metadata in batch.metadata)
    again = sample_batch(requires)
    assert torch.equal(batch.images, again.images)
    assert batch[1:] == again[1:]


def test_samples_without_requirements_come_from_every_source() -> None:
    assert {frozenset(metadata) for metadata in sample_batch(()).metadata} == {
        frozenset(),
        frozenset({"text"}),
        frozenset({"include"}),
    }


def test_metadata_of_no_embedded_prompt_must_be_passed() -> None:
    with pytest.raises(
        ConfigError, match=r"""no embedded prompt has metadata 'depth'.*--metadata '{"depth": "..."}'"""
    ):
        sample_batch(("depth",))


def test_a_suite_inherits_the_checks(install: Install) -> None:
    install(scaled="Scaled", drifts="faulty_plugins:Drifts")

    class Good(RewardConformance):
        plugin = "scaled"
        options = {"scale": 2.0}  # noqa: RUF012

        def test_declares_a_license_and_a_summary(self) -> None:
            with pytest.raises(AssertionError, match="license"):
                super().test_declares_a_license_and_a_summary()

    class Bad(RewardConformance):
        plugin = "drifts"

    tests = [name for name in dir(RewardConformance) if name.startswith("test_")]
    assert len(tests) == 14
    for name in tests:
        getattr(Good(), name)()
    with pytest.raises(AssertionError, match="deterministic: twice the same batch"):
        Bad().test_deterministic()
    assert Good().reward() is Good().reward()


def test_a_suite_may_override_its_batch(install: Install) -> None:
    install(scaled="Scaled")

    class Own(RewardConformance):
        plugin = "scaled"
        options = {"scale": 2.0}  # noqa: RUF012

        def batch(self) -> Batch:
            return sample_batch(())._replace(metadata=[{"text": "x"}] * 6)

    Own().test_one_score_an_image()


def test_a_suite_closes_its_reward_after_its_last_test(install: Install) -> None:
    install(mine="brightness")

    class Suite(RewardConformance):
        plugin = "mine"

    before = set(threading.enumerate())
    Suite().test_deterministic()
    reward = weakref.ref(Suite().reward())
    (thread,) = set(threading.enumerate()) - before
    Suite.teardown_class()  # as pytest calls it
    Suite.teardown_class()  # without a reward there is nothing to close
    thread.join(10)
    assert not thread.is_alive()
    gc.collect()
    assert reward() is None


def test_conformance_can_be_imported_without_pytest(tmp_path: Path) -> None:
    """Nor has the process been given it that a fork begins with."""
    program = tmp_path / "program.py"
    program.write_text("""
import sys
assert "pytest" not in sys.modules
assert "marble_cli.rewards.conformance" not in sys.modules
sys.modules["pytest"] = None
import marble_cli.rewards.conformance
""")
    ((code, _, said),) = ends([forks().start([program], os.environ)])
    assert code == 0, said
