"""A served reward scores, declares and fails as one in this process does."""

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from torch import Tensor

from marble_cli.config.schema import AspectConfig, RewardConfig
from marble_cli.errors import ConfigError, RewardError
from marble_cli.rewards.conformance import Outcome, run_checks
from marble_cli.rewards.elsewhere import protocol
from marble_cli.rewards.elsewhere.locate import declare, maker
from marble_cli.rewards.scorer import open_scorer
from marble_cli.rewards.testing.samples import sample_batch
from tests.rewards.elsewhere.scoring import score, submit

Install = Callable[..., None]
Serve = Callable[..., str]
At = Callable[..., RewardConfig]


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.int64), other.view(torch.int64))


@pytest.mark.parametrize(
    ("plugin", "options"),
    [("brightness", {}), ("by_keyword", {}), ("Network", {}), ("Scaled", {"scale": 1 / 3})],
)
def test_served_scores_equal_local_ones_to_the_last_bit(
    install: Install, at: At, plugin: str, options: dict[str, Any]
) -> None:
    install(mine=plugin)
    images = torch.randint(
        0, 256, (37, 3, 24, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    prompts = [f"a {i} ü" for i in range(37)]
    here = score(RewardConfig(plugin="mine", options=options), images, prompts)
    there = score(at({"options": options}), images, prompts)
    assert same_bits(here.values, there.values)
    assert here.applicable.all()


def test_three_outcomes_are_kept_apart(install: Install, at: At) -> None:
    install(mine="Answers")
    scores = score(at(max_failed=0.9), sample_batch(()).images[:5], ["0.1", "nan", "inf", "-inf", "-2"])
    assert scores.applicable.tolist() == [[True, False, False, False, True]]
    assert scores.failed.tolist() == [[False, False, True, True, False]]
    assert scores.values[0, [0, 4]].tolist() == [0.1, -2.0]


def test_an_exception_in_the_answer_keeps_its_reason(install: Install, at: At) -> None:
    install(mine="FailsInPart")
    with open_scorer({"mine": at(max_failed=0.2)}, "cpu") as scorer:
        scores = submit(scorer, sample_batch(()).images[:4], ["0.1", "dunno", "nan", "-2"])
        assert scores.applicable.tolist() == [[True, False, False, True]]
        assert scores.failed.tolist() == [[False, True, False, False]]
        assert scores.values[0, [0, 3]].tolist() == [0.1, -2.0]
        with pytest.raises(
            RewardError, match="1 of 3 images.*RemoteError: ValueError: could not convert.*'dunno'"
        ):
            scorer.check(scores)


def test_a_reason_is_told_of_its_own_image(install: Install, at: At) -> None:
    install(mine="FailsInPart")
    with open_scorer({"mine": at()}, "cpu") as scorer:
        assert submit(scorer, sample_batch(()).images[:3], ["inf", "dunno", "1"]).failed[0, :2].all()
        said = (
            "RemoteError: ValueError: could not convert string to float: 'dunno'"  # its prompt, and no other
        )
        assert scorer.workers[0].error == said


def test_the_declaration_comes_from_the_server(install: Install, at: At) -> None:
    install(mine="Scaled")
    settings = at({"options": {"scale": 2.0}})
    install()  # nothing is installed on the run's side
    assert declare("mine", settings).requires == ("text",)
    reward = maker("mine", settings, "cpu")()
    assert reward.declaration.summary == "Mean grey level times `scale`, where the metadata has `text`."
    reward.close()


def test_a_served_reward_passes_the_checks(install: Install, at: At) -> None:
    install(mine="brightness")
    reward = maker("mine", at(), "cpu")()
    checks = run_checks(reward, sample_batch(()), "elsewhere", here=False)
    elsewhere = {
        "same on another device",
        "memory an image",
        "prefers its examples",
        "leaves the process alone",
    }
    assert {c.name for c in checks if not c.passed} == elsewhere
    assert not any(c.outcome is Outcome.FAIL for c in checks)
    reward.close()


def test_an_error_of_the_plugin_is_retried_and_reported(install: Install, at: At) -> None:
    install(mine="Raises")
    images = sample_batch(()).images
    assert score(at({"options": {"times": 2}}, retries=2), images, [""] * 6).applicable.all()
    settings = at({"options": {"times": 9}}, retries=1)
    with open_scorer({"mine": settings}, "cpu") as scorer:
        scores = submit(scorer, images, [""] * 6)
        assert scores.failed.all()
        with pytest.raises(
            RewardError, match=r"failed on 6 of 6 images.*RemoteError: RuntimeError: out of memory"
        ):
            scorer.check(scores)


def test_a_plugin_that_exits_does_not_end_the_server(install: Install, at: At) -> None:
    install(mine="exits")
    settings = at(retries=0)
    for _ in range(2):
        with open_scorer({"mine": settings}, "cpu") as scorer:
            assert submit(scorer, sample_batch(()).images, [""] * 6).failed.all()
            assert scorer.workers[0].error == "RemoteError: RuntimeError: SystemExit(3)"


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ("StopIteration", "StopIteration: "),
        ("CancelledError", "CancelledError: "),
        ("BadExceptionError", "BadExceptionError: its text cannot be had (RuntimeError)"),
        ("surrogate", "ValueError: no file caf\\udce9.png (prompt 'surrogate')"),
    ],
)
def test_odd_exceptions_fail_the_images_and_keep_the_connection(
    install: Install, at: At, odd: str, said: str
) -> None:
    install(mine="raises_oddly")
    for settings in (at(retries=0), RewardConfig(plugin="mine", retries=0)):
        with open_scorer({"mine": settings}, "cpu") as scorer:
            assert submit(scorer, sample_batch(()).images, [odd] * 6).failed.all()
            error = scorer.workers[0].error
            assert error is not None
            assert error.removeprefix("RemoteError: ").replace("\udce9", "\\udce9") == said


@pytest.mark.parametrize(
    ("kind", "said"), [("short", r"shape \[5\] for 6 images"), ("words", "instead of 6 numbers")]
)
def test_a_broken_contract_stops_the_run(install: Install, at: At, kind: str, said: str) -> None:
    install(mine="Returns")
    with pytest.raises(RewardError, match=f"reward mine returned .*{said}"):
        score(at({"options": {"kind": kind}}), sample_batch(()).images, [""] * 6)


def test_a_call_that_hangs_on_the_server_is_retried(install: Install, at: At, tmp_path: Path) -> None:
    install(mine="Hangs")
    settings = at({"options": {"marker": str(tmp_path / "marker")}, "timeout": 0.3}, timeout=1.0)
    assert score(settings, sample_batch(()).images, [""] * 6).applicable.all()


def test_the_longer_timeout_of_run_and_server_counts_on_the_server(install: Install, serve: Serve) -> None:
    install(mine="Slow")
    url = serve({"mine": RewardConfig(plugin="mine", options={"seconds": 1.0}, timeout=0.3)})
    settings = RewardConfig(plugin="mine", url=url, timeout=30.0, retries=0)
    assert score(settings, sample_batch(()).images, [""] * 6).applicable.all()
    # A marble that does not tell its timeout.
    answer = httpx.post(f"{url}/score/mine", content=protocol.pack_batch(sample_batch(())), timeout=30)
    assert answer.json()["error"]["message"] == "TimeoutError: no answer within 0.3 s"


def test_a_server_that_does_not_answer_in_time_fails_the_batch(
    install: Install, at: At, tmp_path: Path
) -> None:
    install(mine="Waits")
    marker = tmp_path / "marker"
    settings = at({"options": {"marker": str(marker)}}, timeout=0.3, retries=0)
    with open_scorer({"mine": settings}, "cpu") as scorer:
        assert submit(scorer, sample_batch(()).images, [""] * 6).failed.all()
        assert re.search(
            r"no answer within 0.3 s of the call's turn.*raise rewards.mine.timeout", scorer.workers[0].error
        )
        marker.touch()
        assert submit(scorer, sample_batch(()).images, [""] * 6).applicable.all()


def test_calls_beyond_the_waiting_limit_are_refused(install: Install, serve: Serve, tmp_path: Path) -> None:
    install(mine="Waits", quick="brightness")
    marker = tmp_path / "marker"
    waits = RewardConfig(plugin="mine", options={"marker": str(marker)})
    url = serve({"mine": waits, "quick": RewardConfig(plugin="quick")}, waiting=2)
    body = protocol.pack_batch(sample_batch(()))
    answers: list[httpx.Response] = []

    def ask(name: str) -> None:
        answers.append(httpx.post(f"{url}/score/{name}", content=body, timeout=30))

    threads = [threading.Thread(target=ask, args=("mine",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while len(answers) < 2:  # two wait, two are turned away
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [answer.status_code for answer in answers] == [503, 503]
    assert "2 calls of this reward wait already" in answers[0].json()["error"]["message"]
    ask("quick")  # another reward is not held up
    assert answers[-1].status_code == 200
    marker.touch()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [503, 503, 200, 200, 200]


def test_metadata_of_another_type_fails_its_image_alone(install: Install, at: At) -> None:
    install(mine="ReadsText")
    settings = at(max_failed=0.5)
    install()  # the types come from the server's declaration
    metadata: list[dict[str, Any]] = [{"text": "abc"}, {"text": 13}, {}]
    with open_scorer({"mine": settings}, "cpu") as scorer:
        scores = scorer.submit(sample_batch(()).images[:3], ["a", "b", "c"], metadata, [""] * 3).result()
        assert scorer.workers[0].error == "prompt 'b': metadata text=13: expected a string"
    assert scores.applicable.tolist() == [[True, False, False]]
    assert scores.failed.tolist() == [[False, True, False]]
    assert scores.values[0, 0].item() == 3.0


def test_served_aspects_equal_local_ones_and_are_asked_for_once(install: Install, at: At) -> None:
    install(mine="TwoAspects")
    aspects = {name: AspectConfig() for name in ("number", "light")}
    images, prompts = sample_batch(()).images, ["1", "2", "", "dunno", "nan", "5"]
    here = score(RewardConfig(plugin="mine", aspects=aspects), images, prompts)
    settings = at(aspects=aspects)
    there = score(settings, images, prompts)
    assert there.names == here.names == ["mine.number", "mine.light"]
    assert torch.equal(here.values.nan_to_num(-1), there.values.nan_to_num(-1))
    assert torch.equal(here.failed, there.failed)
    assert declare("mine", settings).ranges == {"light": (0, 255)}
    served = at({"aspects": {"light": AspectConfig()}}, aspects={"number": AspectConfig()})
    with pytest.raises(ConfigError, match="no aspect 'number'"):
        declare("mine", served)


def test_an_aspect_that_the_run_does_not_choose_may_be_missing(install: Install, at: At) -> None:
    install(mine="LacksAnAspect")
    images = sample_batch(()).images
    assert score(at(aspects={"light": AspectConfig()}), images, [""] * 6).applicable.all()
    with pytest.raises(RewardError, match="returned no aspect 'number', only light"):
        score(at(aspects={"number": AspectConfig()}), images, [""] * 6)
