"""The `aesthetic` reward against five matrices written out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from marble_reward_clip.aesthetic import Aesthetic, Predictor
from numpy.typing import NDArray
from safetensors.numpy import load_file

from marble_cli.rewards.conformance import RewardConformance

from .reference import SIZES, cropped, image_embedding, pictures
from .tiny_models import write_predictor


def score(predictor: Path, embedding: NDArray[np.float64]) -> float:
    weights = load_file(predictor / "model.safetensors")
    for layer in (0, 2, 4, 6, 7):
        embedding = weights[f"layers.{layer}.weight"].astype(np.float64) @ embedding
        embedding = embedding + weights[f"layers.{layer}.bias"]
    return float(embedding[0])


def test_has_the_published_layers() -> None:
    shapes = {name: [*tensor.shape] for name, tensor in Predictor(768).state_dict().items()}
    assert shapes == {
        "layers.0.weight": [1024, 768],
        "layers.0.bias": [1024],
        "layers.2.weight": [128, 1024],
        "layers.2.bias": [128],
        "layers.4.weight": [64, 128],
        "layers.4.bias": [64],
        "layers.6.weight": [16, 64],
        "layers.6.bias": [16],
        "layers.7.weight": [1, 16],
        "layers.7.bias": [1],
    }


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_is_what_the_layers_make_of_the_embedding(
    folder: Path, predictor: Path, height: int, width: int
) -> None:
    images = pictures(3, height, width)
    expected = [score(predictor, image_embedding(folder, cropped(image))) for image in images]
    assert max(expected) - min(expected) > 1e-3
    assert Aesthetic(str(folder), str(predictor))(images).numpy() == pytest.approx(expected, abs=2e-5)


def test_a_predictor_for_other_embeddings_is_named(folder: Path, tmp_path: Path) -> None:
    write_predictor(tmp_path, width=768)
    with pytest.raises(OSError, match=r"layers\.0\.weight has shape \[1024, 768\], not \[1024, 16\]"):
        Aesthetic(str(folder), str(tmp_path))


def test_a_folder_without_a_predictor_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"the aesthetic predictor .* cannot be loaded: .*model\.safetensors"):
        Aesthetic(str(folder), str(tmp_path))


def test_computes_in_the_given_type(folder: Path, predictor: Path) -> None:
    images = pictures(3, 40, 40)
    half = Aesthetic(str(folder), str(predictor), dtype=torch.bfloat16)(images)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, Aesthetic(str(folder), str(predictor))(images), atol=0.1, rtol=0)


class TestAestheticConformance(RewardConformance):
    plugin = "aesthetic"
    options: ClassVar[Mapping[str, Any]] = {}

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _folders(cls, folder: Path, predictor: Path) -> None:
        cls.options = {"model": str(folder), "predictor": str(predictor)}
