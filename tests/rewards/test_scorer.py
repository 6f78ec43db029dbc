"""Scores, images to which a reward does not apply, and failures are kept apart."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from marble_cli.config.schema import AspectConfig, RewardConfig
from marble_cli.errors import RewardError
from marble_cli.rewards.batch import Batch
from marble_cli.rewards.scorer import Scores, open_scorer
from tests.rewards.submission import pictures, submit

Install = Callable[..., None]


def test_three_outcomes_are_kept_apart(install: Install) -> None:
    install(answers="Answers")
    with open_scorer({"mine": RewardConfig(plugin="answers", max_failed=0.9)}, "cpu") as scorer:
        scores = submit(scorer, ["0.5", "nan", "inf", "-inf", "-2"])
    assert scores.names == ["mine"]
    assert scores.values.dtype == torch.float64
    assert scores.applicable.tolist() == [[True, False, False, False, True]]
    assert scores.failed.tolist() == [[False, False, True, True, False]]
    assert scores.values[0, [0, 4]].tolist() == [0.5, -2.0]
    assert torch.isnan(scores.values[0, 1:4]).all()


def test_an_exception_in_the_answer_fails_its_image_alone(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install(partly="FailsInPart")
    reason = "ValueError: could not convert string to float: 'dunno'"
    with open_scorer({"mine": RewardConfig(plugin="partly", max_failed=0.3)}, "cpu") as scorer:
        scores = submit(scorer, ["0.5", "dunno", "nan", "-2"])
        assert scores.applicable.tolist() == [[True, False, False, True]]
        assert scores.failed.tolist() == [[False, True, False, False]]
        assert scores.values[0, [0, 3]].tolist() == [0.5, -2.0]
        assert torch.isnan(scores.values[0, 1])
        assert f"reward mine failed on 1 image: {reason}" in caplog.text
        with pytest.raises(RewardError, match=f"mine failed on 1 of 3 images.*Last error: {reason}"):
            scorer.check(scores)
        assert submit(scorer, [""]).values.item() == 2.0  # the batch was not asked for again


def test_a_failure_is_told_of_its_own_image(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    """Neither of one that failed without a reason, nor of one that the reward does not concern."""
    install(partly="FailsInPart", two="TwoAspects")
    with open_scorer({"mine": RewardConfig(plugin="partly", max_failed=1)}, "cpu") as scorer:
        submit(scorer, ["inf", "dunno"])
        batch = Batch(pictures(2), ["inf", "dunno"], [{}, {}])
        ((_, reasons),) = scorer.workers[0].attempt(batch).values()
        assert [*reasons] == [1]
    assert "failed on 2 images: ValueError: could not convert string to float: 'dunno'" in caplog.text
    assert "(prompt" not in caplog.text  # the text has the prompt of its own image
    aspects = {"number": AspectConfig(sources=["b"]), "light": AspectConfig()}
    caplog.clear()
    with open_scorer({"two": RewardConfig(plugin="two", aspects=aspects)}, "cpu") as scorer:
        submit(scorer, ["first", "second"], sources=["a", "b"])
    assert (
        "two.number failed on 1 image: ValueError: could not convert string to float: 'second'" in caplog.text
    )
    assert "first" not in caplog.text


def test_rewards_come_in_the_order_of_the_configuration(install: Install) -> None:
    install(answers="Answers", brightness="brightness")
    rewards = {"b": RewardConfig(plugin="answers"), "a": RewardConfig(plugin="brightness")}
    with open_scorer(rewards, "cpu") as scorer:
        scores = submit(scorer, ["7", "8", "9"])
        assert submit(scorer.only(["a"]), ["7", "8", "9"]).names == ["a"]
    assert scores.names == ["b", "a"]
    assert scores.values.tolist() == [[7, 8, 9], [0, 1, 2]]


def test_a_reward_scores_only_prompts_with_its_required_metadata(install: Install) -> None:
    install(scaled="Scaled")
    metadata: list[Mapping[str, Any]] = [{}, {"text": "x"}, {"other": 1}, {"text": "y"}]
    with open_scorer({"mine": RewardConfig(plugin="scaled", options={"scale": 2.0})}, "cpu") as scorer:
        scores = submit(scorer, [""] * 4, metadata)
        nothing = submit(scorer, [""] * 2)
    assert scores.applicable.tolist() == [[False, True, False, True]]
    assert scores.values[0, [1, 3]].tolist() == [2, 6]
    assert not scores.failed.any()
    assert not nothing.applicable.any()
    assert not nothing.failed.any()


def test_settings_may_require_more_metadata_than_the_plugin(install: Install) -> None:
    install(scaled="Scaled")
    metadata: list[Mapping[str, Any]] = [{"text": "x"}, {"tag": 1}, {"text": "x", "tag": None}]
    with open_scorer(
        {"mine": RewardConfig(plugin="scaled", options={"scale": 2.0}, requires=["tag"])}, "cpu"
    ) as scorer:
        assert submit(scorer, [""] * 3, metadata).applicable.tolist() == [[False, False, True]]


def test_a_reward_scores_only_prompts_of_its_sources(install: Install) -> None:
    install(brightness="brightness")
    with open_scorer(
        {"mine": RewardConfig(plugin="brightness", sources=["text", "general"])}, "cpu"
    ) as scorer:
        scores = submit(scorer, [""] * 3, sources=["general", "compositional", "text"])
    assert scores.applicable.tolist() == [[True, False, True]]
    assert scores.values[0, [0, 2]].tolist() == [0, 2]


def test_a_failure_is_retried(install: Install) -> None:
    install(raises="Raises")
    with open_scorer(
        {"mine": RewardConfig(plugin="raises", options={"times": 2}, retries=2)}, "cpu"
    ) as scorer:
        scores = submit(scorer, ["", ""])
        scorer.check(scores)
    assert scores.values.tolist() == [[1, 1]]
    assert not scores.failed.any()


def test_a_failure_masks_its_own_batch_only(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    install(raises="Raises")
    settings = RewardConfig(plugin="raises", options={"times": 3}, retries=2, max_failed=0.5)
    with open_scorer({"mine": settings}, "cpu") as scorer:
        first, second = submit(scorer, ["", "", ""]), submit(scorer, ["", "", ""])
        assert first.failed.all()
        assert not first.applicable.any()
        assert second.applicable.all()
        scorer.check(
            Scores(
                first.names,
                *(
                    torch.cat([getattr(first, f), getattr(second, f)], dim=1)
                    for f in ("values", "applicable", "failed")
                ),
            )
        )
    assert "reward mine failed on 3 images: RuntimeError: out of memory" in caplog.text


@pytest.mark.parametrize(
    ("plugin", "options", "said"),
    [("Raises", {"times": 99}, "RuntimeError: out of memory"), ("exits", {}, "SystemExit")],
)
def test_a_reward_that_always_fails_stops_the_run(
    install: Install, plugin: str, options: dict[str, Any], said: str
) -> None:
    install(broken=plugin)
    with open_scorer({"mine": RewardConfig(plugin="broken", options=options)}, "cpu") as scorer:
        scores = submit(scorer, ["", ""])
        assert scores.failed.all()
        with pytest.raises(RewardError, match=rf"reward mine failed on 2 of 2 .*max_failed=0.5.*{said}"):
            scorer.check(scores)


def test_the_share_of_failures_counts_applicable_images_only(install: Install) -> None:
    install(answers="Answers")
    with open_scorer({"mine": RewardConfig(plugin="answers", max_failed=0.25)}, "cpu") as scorer:
        scorer.check(submit(scorer, ["inf", "1", "2", "3"]))
        with pytest.raises(RewardError, match=r"failed on 1 of 2 images.*returned inf"):
            scorer.check(submit(scorer, ["inf", "1", "nan", "nan"]))
        with pytest.raises(RewardError, match=r"failed on 1 of 2 images.*returned -1e\+200"):
            scorer.check(submit(scorer, ["-1e200", "1", "nan", "nan"]))


def test_a_reward_that_applies_to_no_image_warns_once(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install(answers="Answers")
    with open_scorer({"mine": RewardConfig(plugin="answers")}, "cpu") as scorer:
        for _ in range(2):
            scorer.check(submit(scorer, ["nan", "nan"]))
    assert caplog.text.count("reward mine applied to none of the 2 images; it is left out while that") == 1


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("short", r"scores of shape \[2\] for 3 images. Expected \[3\]"),
        ("column", r"scores of shape \[3, 1\] for 3 images"),
        ("words", r"returned list instead of 3 numbers"),
        ("nothing", r"returned NoneType instead of 3 numbers"),
    ],
)
def test_a_broken_contract_stops_the_run(install: Install, kind: str, message: str) -> None:
    install(returns="Returns")
    with (
        open_scorer({"mine": RewardConfig(plugin="returns", options={"kind": kind})}, "cpu") as scorer,
        pytest.raises(RewardError, match=f"reward mine {'returned ' if 'shape' in message else ''}{message}"),
    ):
        submit(scorer, ["", "", ""])


def test_scores_do_not_depend_on_batching(install: Install) -> None:
    install(answers="Answers", scaled="Scaled")
    rewards = {
        "a": RewardConfig(plugin="answers"),
        "s": RewardConfig(plugin="scaled", options={"scale": 3.0}),
    }
    prompts = [str(number) for number in (3, 1, "nan", 1, 5, 9, 2)]
    metadata: list[Mapping[str, Any]] = [{"text": "x"} if i % 3 else {} for i in range(7)]
    images = pictures(7)
    with open_scorer(rewards, "cpu") as scorer:
        whole = scorer.submit(images, prompts, metadata, [""] * 7).result()
        for size in (1, 2, 3):
            parts = [
                scorer.submit(
                    images[i : i + size],
                    prompts[i : i + size],
                    metadata[i : i + size],
                    [""] * len(prompts[i : i + size]),
                )
                for i in range(0, 7, size)
            ]
            for field in ("values", "applicable", "failed"):
                joined = torch.cat([getattr(part.result(), field) for part in parts], dim=1)
                torch.testing.assert_close(joined, getattr(whole, field), equal_nan=True)


def test_scores_can_be_used_in_autograd(install: Install) -> None:
    install(brightness="brightness")
    with open_scorer({"mine": RewardConfig(plugin="brightness")}, "cpu") as scorer:
        scores = submit(scorer, ["", ""])
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    (weight * scores.values).sum().backward()
    assert weight.grad is not None
    assert weight.grad.item() == 1


@pytest.fixture(autouse=True)
def _marble_logs(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests may have taken the `marble` logger's lines elsewhere."""
    monkeypatch.setattr(logging.getLogger("marble"), "propagate", True)
    caplog.set_level(logging.WARNING, "marble")
