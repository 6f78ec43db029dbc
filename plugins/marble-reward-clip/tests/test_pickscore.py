"""The `pickscore` reward against its formula, exp(logit_scale) * cosine, with crops as in transformers."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from marble_reward_clip.pickscore import PickScore
from transformers import CLIPModel

from marble_cli.rewards.conformance import RewardConformance

from .reference import SIZES, cosines, pictures

TEMPERATURE = 42.0


@pytest.fixture(scope="module")
def warm(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the small model with another logit scale."""
    place = tmp_path_factory.mktemp("pickscore")
    model = CLIPModel.from_pretrained(folder)
    model.logit_scale.data.fill_(math.log(TEMPERATURE))
    model.save_pretrained(place)
    for file in folder.glob("*.json"):
        (place / file.name).write_bytes(file.read_bytes())
    return place


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_score_is_the_scaled_cosine_of_the_embeddings(warm: Path, height: int, width: int) -> None:
    images, prompts = pictures(3, height, width), ["a red cup", "two blue kite and a cup", ""]
    assert PickScore(str(warm))(images, prompts).numpy() == pytest.approx(
        TEMPERATURE * cosines(warm, images, prompts, lambda excess: excess // 2), abs=1e-3
    )


def test_range_follows_from_the_logit_scale(warm: Path) -> None:
    assert PickScore(str(warm)).range == pytest.approx((-TEMPERATURE, TEMPERATURE), rel=1e-6)


def test_score_orders_pictures_like_the_cosine(warm: Path) -> None:
    images = pictures(5, 48, 48)
    scores = PickScore(str(warm))(images, ["a kite"] * 5)
    assert scores.argsort().tolist() == cosines(warm, images, ["a kite"] * 5).argsort().tolist()
    assert scores.dtype == torch.float64


class TestPickScoreConformance(RewardConformance):
    plugin = "pickscore"
    options: ClassVar[Mapping[str, Any]] = {"model": "tiny"}
