"""Rewards that ask for them are given videos; rewards of pictures are asked about their frames."""

import math
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from marble_cli.config.enums import FrameUse
from marble_cli.config.schema import RewardConfig
from marble_cli.rewards.api import Batch
from marble_cli.rewards.conformance import Outcome, run_checks
from marble_cli.rewards.elsewhere import protocol
from marble_cli.rewards.elsewhere.locate import maker
from marble_cli.rewards.frames import mean_over_frames
from marble_cli.rewards.registry import build
from marble_cli.rewards.scorer import Scores, open_scorer
from marble_cli.rewards.testing.samples import samples_for
from marble_cli.videos import middle_frame
from tests.rewards.elsewhere.conftest import at, serve  # noqa: F401 - fixtures

Install = Callable[..., None]
NAMES = ("motion", "maybe_motion", "corner", "whole_batch", "still")

VIDEOS = torch.randint(1, 250, (5, 3, 3, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
# The first values of the frames of each video: 0 does not apply, and above 250 fails.
CORNERS = torch.tensor([[10, 20, 60], [0, 7, 10], [0, 0, 0], [5, 255, 0], [1, 2, 4]], dtype=torch.uint8)
VIDEOS[:, :, 0, 0, 0] = CORNERS


@pytest.fixture(autouse=True)
def plugins(install: Install) -> None:
    install(mine="frame_plugins:motion", **{name: f"frame_plugins:{name}" for name in NAMES})


def scored(settings: RewardConfig, frames: Tensor | None = VIDEOS) -> Scores:
    images = middle_frame(VIDEOS)
    with open_scorer({"mine": settings}, "cpu") as scorer:
        return scorer.submit(images, ["a"] * 5, [{}] * 5, [""] * 5, frames).result()


@pytest.mark.parametrize(
    ("use", "values", "failed"),
    [
        (FrameUse.mean, [30.0, 8.5, math.nan, math.nan, 7 / 3], [3]),
        (FrameUse.first, [10.0, math.nan, math.nan, 5.0, 1.0], []),
        (FrameUse.middle, [20.0, 7.0, math.nan, math.nan, 2.0], [3]),
    ],
)
def test_a_reward_of_pictures_is_asked_about_frames(
    use: FrameUse, values: list[float], failed: list[int]
) -> None:
    """A frame it does not apply to is left out of the mean, and one that it fails on fails the video."""
    scores = scored(RewardConfig(plugin="corner", frames=use, retries=0))
    expected = torch.tensor([values], dtype=torch.float64)
    torch.testing.assert_close(scores.values, expected, equal_nan=True)
    assert scores.failed[0].nonzero().flatten().tolist() == failed
    assert torch.equal(scores.applicable, ~expected.isnan())


def test_a_frame_beyond_float32_fails_the_video() -> None:
    """The mean with the other frames may be within it."""
    frames = [torch.tensor([score, 1.0], dtype=torch.float64) for score in (1e39, *[0.0] * 8)]
    ((scores, _),) = mean_over_frames([[(scores, {})] for scores in frames])
    assert scores.tolist() == [math.inf, 1.0]


def test_the_mean_is_the_default_and_a_whole_batch_asks_for_no_frames() -> None:
    scores = scored(RewardConfig(plugin="whole_batch"))
    torch.testing.assert_close(scores.values[0], CORNERS.double().mean(1))


@pytest.mark.parametrize("plugin", ["motion", "maybe_motion"])
def test_frames_reach_those_who_ask(plugin: str) -> None:
    declaration = build("mine", plugin, {}, "cpu").declaration
    assert (declaration.takes_frames, declaration.needs_frames) == (True, plugin == "motion")
    scores = scored(RewardConfig(plugin=plugin))
    torch.testing.assert_close(scores.values[0], VIDEOS.double().diff(dim=1).abs().mean((1, 2, 3, 4)))
    pictures = scored(RewardConfig(plugin=plugin), None)
    assert pictures.applicable.any() == (plugin == "maybe_motion")
    assert not pictures.failed.any()


def test_a_batch_keeps_its_frames() -> None:
    batch = Batch(middle_frame(VIDEOS), ["a"] * 5, [{}] * 5, None, VIDEOS)
    assert len(batch) == 3
    assert batch._replace(prompts=["b"] * 5).frames is VIDEOS
    chosen = batch.rows([2, 0, 2]).frames
    assert chosen is not None
    assert torch.equal(chosen, VIDEOS[[2, 0, 2]])


def test_frames_survive_the_wire_and_are_optional() -> None:
    batch = Batch(middle_frame(VIDEOS), ["a"] * 5, [{}] * 5, None, VIDEOS.transpose(3, 4))
    batch = batch._replace(images=middle_frame(VIDEOS).transpose(2, 3))
    body = protocol.pack_batch(batch)
    arrived = protocol.unpack_batch(body)
    assert arrived.frames is not None
    assert torch.equal(arrived.frames, VIDEOS.transpose(3, 4))
    assert "frames" not in load(protocol.pack_batch(batch._replace(frames=None)))
    for wrong in (VIDEOS[:4], VIDEOS[:, :0], VIDEOS[:, 0], VIDEOS.float()):
        with pytest.raises(ValueError, match=r"Expected uint8 \[B, F, 3, H, W\] of images"):
            protocol.unpack_batch(save({**load(body), "frames": wrong.contiguous()}))


@pytest.mark.parametrize("plugin", ["motion", "corner"])
def test_served_scores_equal_local_ones(install: Install, at: Any, plugin: str) -> None:  # noqa: F811
    install(mine=f"frame_plugins:{plugin}")
    here, there = scored(RewardConfig(plugin="mine", retries=0)), scored(at(retries=0))
    torch.testing.assert_close(there.values, here.values, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(there.failed, here.failed)


def test_an_older_client_is_told_what_is_missing(at: Any) -> None:  # noqa: F811
    body = protocol.pack_batch(Batch(middle_frame(VIDEOS), ["a"] * 5, [{}] * 5))
    answer = httpx.post(f"{at().url}/score/mine", content=body)
    assert answer.status_code == 422
    assert "Expected `frames` in it" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("plugin", "faults"),
    [("motion", {}), ("maybe_motion", {}), ("still", {"leaves its inputs alone": "it changed the frames"})],
)
def test_checks_give_frames_to_those_who_ask(plugin: str, faults: dict[str, str]) -> None:
    reward = maker("mine", RewardConfig(plugin=plugin), "cpu")()
    checks = run_checks(reward, samples_for(reward.declaration, ()))
    assert {check.name: check.detail for check in checks if check.outcome is Outcome.FAIL} == faults
