"""The `clipscore` reward against CLIP computed step by step."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from marble_reward_clip.clipscore import ClipScore

from marble_cli.rewards.conformance import RewardConformance

from .reference import SIZES, cosines, pictures


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_is_the_cosine_of_the_embeddings(folder: Path, height: int, width: int) -> None:
    images, prompts = pictures(3, height, width), ["a red cup", "two blue kite and a cup", ""]
    assert ClipScore(str(folder))(images, prompts).numpy() == pytest.approx(
        cosines(folder, images, prompts), abs=2e-5
    )


class TestClipScoreConformance(RewardConformance):
    plugin = "clipscore"
    options: ClassVar[Mapping[str, Any]] = {"model": "tiny"}
