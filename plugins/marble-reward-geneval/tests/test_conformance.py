"""The contract of rewards, held by `geneval` in both modes and with both kinds of detectors."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
from torch import Tensor

from marble_cli.rewards.api import Batch
from marble_cli.rewards.conformance import RewardConformance
from marble_cli.rewards.registry import build
from marble_cli.rewards.testing.examples import prefers_its_examples

Pictures = Callable[..., Tensor]

Rows = list[dict[str, Any]]
DOG, CAR = {"class": "dog", "count": 1}, {"class": "car", "count": 1}
# Some of these objects are there for the tiny Mask2Former, others are not.
BY_MASKS: Rows = [
    {"tag": "single_object", "include": [DOG]},
    {"tag": "two_object", "include": [{"class": "book", "count": 1}, {"class": "dog", "count": 2}]},
    {"tag": "counting", "include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 3}]},
    {"tag": "colors", "include": [{"class": "skateboard", "count": 1, "color": "orange"}]},
    {"tag": "position", "include": [{"class": "book", "count": 1}, {**CAR, "position": ("above", 0)}]},
    {
        "tag": "color_attr",
        "include": [{**CAR, "color": "red"}, {"class": "cat", "count": 1, "color": "pink"}],
    },
]
# The tiny DETR finds couches everywhere.
BY_BOXES: Rows = [
    {"tag": "single_object", "include": [{"class": "couch", "count": 1}]},
    {"tag": "colors", "include": [{"class": "couch", "count": 9, "color": "orange"}]},
] * 3


class GenEvalConformance(RewardConformance):
    """The suite on pictures of patches; not collected by itself."""

    plugin = "geneval"
    options: ClassVar[Mapping[str, Any]]
    metadata: ClassVar[Rows]
    images: ClassVar[Tensor]

    def batch(self) -> Batch:
        return Batch(self.images, [row["tag"] for row in self.metadata], self.metadata)

    def test_prefers_its_examples(self, tiny: ModuleType, tmp_path: Path) -> None:
        """With other labels: a random model's own mean nothing."""
        detector = shutil.copytree(self.options["detector"], tmp_path / "detector")
        tiny.label_for_examples(detector)
        reward = build("geneval", "geneval", {**self.options, "detector": str(detector)}, "cpu")
        assert prefers_its_examples(reward, self.batch()).startswith("1 pairs in order")

    def test_scores_differ(self) -> None:
        """Equal scores would make the suite meaningless."""
        assert len({*self.reward().call(self.batch())}) > 1


class TestSoftConformance(GenEvalConformance):
    metadata = BY_MASKS

    @pytest.fixture(autouse=True)
    def _models(self, pictures: Pictures, mask2former: Path, clip: Path) -> None:
        type(self).images = pictures(6, seed=7)
        type(self).options = {"detector": str(mask2former), "clip": str(clip), "batch_size": 4}


class TestStrictConformance(GenEvalConformance):
    metadata = BY_BOXES

    @pytest.fixture(autouse=True)
    def _models(self, pictures: Pictures, detr: Path, clip: Path) -> None:
        type(self).images = pictures(6, seed=7)
        type(self).options = {"detector": str(detr), "clip": str(clip), "mode": "strict"}
