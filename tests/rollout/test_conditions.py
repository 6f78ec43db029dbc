"""A rollout gives pictures to the policy and to the rewards: each image that of its own prompt."""

from collections.abc import Iterator
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
from marble_cli.policy.load import load_policy
from marble_cli.rewards.api import Batch, Declaration
from marble_cli.rewards.guard import Guard
from marble_cli.rewards.registry import Reward
from marble_cli.rewards.scorer import Scorer
from marble_cli.rewards.worker import RewardWorker
from marble_cli.rollout.collect import Rollout


def level(batch: Batch) -> Tensor:
    """The mean of the conditions, which have the shape of the images."""
    assert batch.conditions is not None
    assert batch.conditions.shape == batch.images.shape
    return batch.conditions.float().mean((1, 2, 3))


@pytest.fixture
def scorer() -> Iterator[Scorer]:
    reward = Reward("level", Declaration(takes_conditions=True), level, Guard("level"))
    with closing(RewardWorker("level", RewardConfig("level"), lambda: reward)) as worker:
        yield Scorer([worker], pending=4)


@pytest.fixture
def policy(model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(source.FAMILIES, "StableDiffusion3Pipeline", "tests.policy.editing:EditingSD3")
    return load_policy(model, seed=0)


@pytest.fixture
def prompts(tmp_path: Path) -> list[Prompt]:
    """Groups of three, two of the same words with other pictures, and one of another shape and word."""
    rows = []
    for i, words in enumerate(("make it red", "make it red", "turn it")):
        Image.fromarray(np.full((50, 40 + 30 * i, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
        rows += [Prompt(words, {}, "edits", "", Condition(f"line {i}", tmp_path / f"{i}.png"))] * 3
    return rows


@pytest.mark.parametrize("wide", [False, True])
def test_each_image_has_the_picture_of_its_prompt(
    policy: Any, scorer: Scorer, prompts: list[Prompt], wide: bool
) -> None:
    """Batches of four cut across groups; the pictures have the size of the images, whatever theirs."""
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
    expected = [0.0] * 3 + [40.0] * 3 + [80.0] * 3
    assert samples.scores(Ranks()).values[0].tolist() == expected
    assert samples.negatives is not None
    for embeddings in (samples.embeddings, samples.negatives):
        assert len(embeddings.distinct) == 3
        assert embeddings[:].tensors["condition"].mean((1, 2, 3)).tolist() == expected


def test_a_picture_that_vanished_is_named(
    policy: Any, scorer: Scorer, prompts: list[Prompt], tmp_path: Path
) -> None:
    (tmp_path / "1.png").unlink()
    rollout = Rollout(policy, RolloutConfig(steps=1, solver=OdeSolver.euler), seed=5)
    with pytest.raises(DataError, match=r"line 1: .*1\.png cannot be read"):
        rollout.encode(prompts)
