"""A rollout gives pictures to the policy and to the rewards: each image those of its own prompt."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from marble_cli.config.enums import OdeSolver
from marble_cli.config.schema import ModelConfig, RewardConfig, RolloutConfig
from marble_cli.data.conditions import Condition
from marble_cli.data.prompts import Prompt
from marble_cli.distributed.ranks import Ranks
from marble_cli.errors import DataError
from marble_cli.policy import source
from marble_cli.policy.editing import latents_of
from marble_cli.policy.load import load_policy
from marble_cli.rewards.api import Batch, Declaration
from marble_cli.rewards.guard import Guard
from marble_cli.rewards.registry import Reward
from marble_cli.rewards.scorer import Scorer
from marble_cli.rewards.worker import RewardWorker
from marble_cli.rollout.collect import Rollout
from marble_cli.step.batches import rows_by_shape


def level(batch: Batch) -> list[float]:
    """The mean of the pictures, the second doubled; one has the shape of its image, two have theirs."""
    assert batch.references is not None
    for pictures, image in zip(batch.references, batch.images, strict=True):
        pixels = image.shape[1] * image.shape[2]
        shapes = [image.shape] if len(pictures) == 1 else [(3, *own_shape(i, pixels)) for i in (0, 2)]
        assert [picture.shape for picture in pictures] == shapes
    return [levels(pictures) for pictures in batch.references]


def levels(pictures: Iterable[Tensor]) -> float:
    return sum(place * picture.float().mean().item() for place, picture in enumerate(pictures, 1))


def own_shape(number: int, pixels: int) -> tuple[int, int]:
    """Height and width of a picture that was scaled to a number of pixels."""
    height, width = 50, 40 + 30 * number
    scale = (pixels / (height * width)) ** 0.5
    return round(height * scale), round(width * scale)


@pytest.fixture
def scorer() -> Iterator[Scorer]:
    reward = Reward("level", Declaration(takes_conditions=True, takes_references=True), level, Guard("level"))
    with closing(RewardWorker("level", RewardConfig("level"), lambda: reward)) as worker:
        yield Scorer([worker], pending=4)


@pytest.fixture
def policy(model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(source.FAMILIES, "StableDiffusion3Pipeline", "tests.policy.editing:EditingSD3")
    return load_policy(model, seed=0)


@pytest.fixture
def prompts(tmp_path: Path) -> list[Prompt]:
    """Groups of three, two of the same words with other pictures, and one with two pictures."""
    made = []
    for i in range(3):
        Image.fromarray(np.full((50, 40 + 30 * i, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
        made.append(Condition(f"line {i}", tmp_path / f"{i}.png"))
    rows = [("make it red", (made[0],)), ("make it red", (made[1],)), ("put it there", (made[0], made[2]))]
    return [Prompt(words, {}, "edits", "", images) for words, images in rows for _ in range(3)]


@pytest.mark.parametrize("wide", [False, True])
def test_each_image_has_the_picture_of_its_prompt(
    policy: Any, scorer: Scorer, prompts: list[Prompt], wide: bool
) -> None:
    """Batches of four cut across groups; a single picture has the size of the images, whatever its own."""
    if wide:
        policy = policy.resized(f"{2 * policy.model.resolution}x{policy.model.resolution}")
    settings = RolloutConfig(steps=1, solver=OdeSolver.euler, batch_size=4)
    rollout = Rollout(policy, settings, seed=5, negatives=True)
    samples = rollout.collect(
        prompts,
        range(9),
        scorer=scorer,
        adapter="behaviour",
        purpose="rollout",
        step=1,
        advance=lambda count: None,
    )
    expected = [0.0] * 3 + [40.0] * 3 + [160.0] * 3
    assert samples.scores(Ranks()).values[0].tolist() == expected
    assert samples.negatives is not None
    for embeddings in (samples.embeddings, samples.negatives):
        assert len(embeddings.distinct) == 3
        assert [levels(latents_of(embeddings[i : i + 1].tensors)) for i in range(9)] == expected
    shapes = [rows.tolist() for rows in rows_by_shape(samples.x0, samples.embeddings)]
    assert shapes == [[0, 1, 2, 3, 4, 5], [6, 7, 8]]


def test_a_picture_that_vanished_is_named(
    policy: Any, scorer: Scorer, prompts: list[Prompt], tmp_path: Path
) -> None:
    (tmp_path / "1.png").unlink()
    rollout = Rollout(policy, RolloutConfig(steps=1, solver=OdeSolver.euler), seed=5)
    with pytest.raises(DataError, match=r"line 1: .*1\.png cannot be read"):
        rollout.encode(prompts)
