"""Scores, what does not apply and what failed are kept apart, whatever a plugin does."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from marble_cli.config.schema import RewardConfig
from marble_cli.errors import ConfigError, RewardError
from marble_cli.rewards.scorer import Scorer, Scores, open_scorer

Install = Callable[..., None]


def pictures(count: int) -> Tensor:
    """Images uint8 [count, 3, 4, 4] of grey levels 0, 1, 2, ..."""
    return torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, 4, 4).contiguous()


def submit(
    scorer: Scorer,
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]] | None = None,
    sources: Sequence[str] | None = None,
) -> Scores:
    n = len(prompts)
    return scorer.submit(pictures(n), prompts, metadata or [{}] * n, sources or ["general"] * n).result()


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
        assert f"reward mine failed on 1 images: {reason}" in caplog.text
        with pytest.raises(RewardError, match=f"mine failed on 1 of 3 images.*Last error: {reason}"):
            scorer.check(scores)
        assert submit(scorer, [""]).values.item() == 2.0  # the batch was not asked for again


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


def test_a_reward_that_applies_to_no_image_warns_once(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install(answers="Answers")
    with open_scorer({"mine": RewardConfig(plugin="answers")}, "cpu") as scorer:
        for _ in range(2):
            scorer.check(submit(scorer, ["nan", "nan"]))
    assert caplog.text.count("reward mine applied to none of the 2 images") == 1


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


def test_a_call_that_hangs_is_retried_on_a_new_reward(install: Install, tmp_path: Path) -> None:
    install(hangs="Hangs")
    options = {"marker": str(tmp_path / "marker")}
    with open_scorer({"mine": RewardConfig(plugin="hangs", options=options, timeout=1.0)}, "cpu") as scorer:
        scores = submit(scorer, ["", ""])
        assert scores.values.tolist() == [[1, 1]]
        assert submit(scorer, [""]).applicable.all()


def test_a_call_that_always_hangs_is_masked(
    install: Install, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install(hangs="Hangs", brightness="brightness")
    options = {"marker": str(tmp_path / "marker"), "once": False}
    rewards = {
        "stuck": RewardConfig(plugin="hangs", options=options, timeout=0.1, retries=1),
        "fine": RewardConfig(plugin="brightness"),
    }
    with open_scorer(rewards, "cpu") as scorer:
        scores = submit(scorer, ["", "", ""])
        assert scores.failed.tolist() == [[True] * 3, [False] * 3]
        assert scores.values[1].tolist() == [0, 1, 2]
        with pytest.raises(RewardError, match=r"reward stuck failed.*TimeoutError: no answer within 0.1 s"):
            scorer.check(scores)
    assert caplog.text.count("building it anew") == 2


def test_an_abandoned_thread_ends_when_its_call_returns(install: Install, tmp_path: Path) -> None:
    install(waits="Waits")
    marker = tmp_path / "marker"
    settings = RewardConfig(plugin="waits", options={"marker": str(marker)}, timeout=1.0, retries=0)
    with open_scorer({"late": settings}, "cpu") as scorer:
        assert submit(scorer, [""]).failed.all()
        marker.touch()
        assert submit(scorer, [""]).applicable.all()
    deadline = time.monotonic() + 10
    while any(thread.name == "call-late" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "a thread is still there"
        time.sleep(0.01)


def test_closing_does_not_wait_for_a_call_that_hangs(install: Install, tmp_path: Path) -> None:
    install(hangs="Hangs")
    options = {"marker": str(tmp_path / "marker"), "once": False}
    start = time.monotonic()
    with open_scorer({"mine": RewardConfig(plugin="hangs", options=options, timeout=600)}, "cpu") as scorer:
        pending = scorer.submit(pictures(1), [""], [{}], [""])
        while scorer.workers[0].pending_call is None:
            time.sleep(0.01)
    assert time.monotonic() - start < 30
    with pytest.raises(RewardError, match="reward mine was closed before it answered"):
        pending.result()


def test_the_process_ends_while_a_call_hangs(tmp_path: Path) -> None:
    code = f"""
from importlib.metadata import EntryPoint
import torch
import marble_cli.rewards.registry as registry
from marble_cli.config.schema import RewardConfig
from marble_cli.rewards.scorer import open_scorer
registry.installed = lambda: {{"hangs": EntryPoint("hangs", "sample_plugins:Hangs", "marble.rewards")}}
options = {{"marker": {str(tmp_path / "marker")!r}, "once": False}}
settings = RewardConfig(plugin="hangs", options=options, timeout=0.2, retries=0)
with open_scorer({{"mine": settings}}, "cpu") as scorer:
    scores = scorer.submit(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), [""], [{{}}], [""]).result()
print(int(scores.failed.sum()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1\n"


def test_submit_waits_while_pending_batches_are_unfinished(install: Install, tmp_path: Path) -> None:
    install(waits="Waits", brightness="brightness")
    marker = tmp_path / "marker"
    rewards = {
        "slow": RewardConfig(plugin="waits", options={"marker": str(marker)}),
        "quick": RewardConfig(plugin="brightness"),
    }
    submitted = []
    with open_scorer(rewards, "cpu", pending=2) as scorer:

        def submit_five() -> None:
            for _ in range(5):
                submitted.append(scorer.submit(pictures(2), ["", ""], [{}, {}], ["", ""]))

        thread = threading.Thread(target=submit_five)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        assert len(submitted) == 2
        marker.touch()
        thread.join(60)
        assert not thread.is_alive()
        assert all(pending.result().applicable.all() for pending in submitted)


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


def test_a_reward_that_cannot_be_rebuilt_stops_the_run_at_once(install: Install) -> None:
    install(mine="LosesItsFiles")
    settings = RewardConfig(plugin="mine", timeout=0.2, retries=400)
    with (
        open_scorer({"mine": settings}, "cpu") as scorer,
        pytest.raises(RewardError, match="OSError: its weights are gone"),
    ):
        submit(scorer, ["", ""])


def test_every_worker_is_closed_if_one_cannot_be_built(install: Install) -> None:
    install(brightness="brightness", broken="Unbuildable")
    rewards = {"first": RewardConfig(plugin="brightness"), "second": RewardConfig(plugin="broken")}
    with pytest.raises(ConfigError, match="second could not be built"), open_scorer(rewards, "cpu"):
        raise AssertionError("unreachable")
    deadline = time.monotonic() + 10
    while any(thread.name == "call-first" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "a thread is still there"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _marble_logs(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests may have taken the `marble` logger's lines elsewhere."""
    monkeypatch.setattr(logging.getLogger("marble"), "propagate", True)
    caplog.set_level(logging.WARNING, "marble")
