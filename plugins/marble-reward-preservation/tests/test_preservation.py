"""The `preservation` reward against DINOv2 written out in float64, and the contract of every kind."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from marble_reward_preservation import preservation
from marble_reward_preservation.preservation import Preservation
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModel

from marble_cli.rewards.conformance import RewardConformance

from .tiny_models import write_dino

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def pictures(count: int, height: int = 42, width: int = 70, seed: int = 0) -> Tensor:
    """uint8 [count, 3, height, width]: noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module", params=["dinov2", "registers", "dinov3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dino(tmp_path_factory.mktemp("dino"), request.param)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dino(tmp_path_factory.mktemp("dinov2"))


def patch_features(folder: Path, picture: Tensor) -> np.ndarray:
    """Features [P, D] of one picture uint8 [3, H, W] of whole patches, in plain layers of torch in float64.

    The position of each patch is the network's own, so the picture has as many patches as it was built for.
    """
    weights = {name: value.double() for name, value in load_file(folder / "model.safetensors").items()}
    width, heads = 24, 2
    pixels = torch.from_numpy((picture.permute(1, 2, 0).numpy() / 255 - MEAN) / STD).permute(2, 0, 1)
    projection = "embeddings.patch_embeddings.projection"
    x = (
        functional.conv2d(
            pixels[None], weights[f"{projection}.weight"], weights[f"{projection}.bias"], stride=14
        )[0]
        .flatten(1)
        .T
    )
    x = torch.cat([weights["embeddings.cls_token"][0], x]) + weights["embeddings.position_embeddings"][0]

    def linear(name: str, inputs: Tensor) -> Tensor:
        return inputs @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, inputs: Tensor) -> Tensor:
        return functional.layer_norm(
            inputs, (width,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6
        )

    for layer in (f"encoder.layer.{i}" for i in range(2)):
        seen, parts = norm(f"{layer}.norm1", x), []
        query, key, value = (
            linear(f"{layer}.attention.attention.{name}", seen) for name in ("query", "key", "value")
        )
        for head in range(heads):
            mine = slice(head * width // heads, (head + 1) * width // heads)
            share = torch.softmax(query[:, mine] @ key[:, mine].T / math.sqrt(width / heads), dim=1)
            parts.append(share @ value[:, mine])
        attended = linear(f"{layer}.attention.output.dense", torch.cat(parts, dim=1))
        x = x + attended * weights[f"{layer}.layer_scale1.lambda1"]
        inner = functional.gelu(linear(f"{layer}.mlp.fc1", norm(f"{layer}.norm2", x)))
        x = x + linear(f"{layer}.mlp.fc2", inner) * weights[f"{layer}.layer_scale2.lambda1"]
    return norm("layernorm", x)[1:].numpy()


@pytest.mark.parametrize("changed", [0.0, 0.25, 0.9])
def test_the_score_is_the_mean_cosine_of_the_patches_most_alike(dinov2: Path, changed: float) -> None:
    """56 x 56 pixels: 16 patches, of which 16, 12 and 2 count."""
    after, before = pictures(3, 56, 56), pictures(3, 56, 56, seed=1)
    before[1] = after[1]
    before[1, :, :28] = 0  # half of the picture is another
    found = Preservation(str(dinov2), side=56, changed=changed)(after, before)
    for i in range(3):
        one, other = (patch_features(dinov2, picture) for picture in (after[i], before[i]))
        cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
        kept = np.sort(cosines)[math.floor(changed * 16) :]
        assert found[i].item() == pytest.approx(kept.mean(), abs=1e-5)


def test_an_untouched_picture_scores_1_and_a_local_edit_less_than_a_total_one(folder: Path) -> None:
    before = pictures(3)
    after = before.clone()
    after[1, :, :14, :14] = 0
    after[2] = pictures(1, seed=9)[0]
    same, local, total = Preservation(str(folder), side=42, changed=0.0)(after, before).tolist()
    assert same == pytest.approx(1, abs=1e-5)
    assert total < local < same


def test_patches_that_may_change_cost_nothing(dinov2: Path) -> None:
    """The features of the others change a little, because each patch attends to all."""
    before = pictures(1)
    after = before.clone()
    after[:, :, :14, :14] = 0
    strict, lenient = (Preservation(str(dinov2), side=42, changed=share)(after, before) for share in (0, 0.2))
    assert strict.item() < lenient.item() <= 1


@pytest.mark.parametrize(
    ("size", "side", "grid"),
    [((42, 70), 42, (3, 5)), ((70, 42), 42, (5, 3)), ((64, 64), 224, (16, 16)), ((100, 33), 28, (6, 2))],
)
def test_the_whole_picture_is_scaled_to_whole_patches(
    dinov2: Path, size: tuple[int, int], side: int, grid: tuple[int, int]
) -> None:
    reward = Preservation(str(dinov2), side=side)
    assert reward._features(pictures(2, *size)).shape == (2, grid[0] * grid[1], 24)


def test_scores_do_not_depend_on_the_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = Preservation(str(folder), side=42)
    after, before = pictures(6), pictures(6, seed=1)
    before[3:] = before[:3]
    whole = reward(after, before)
    alone = torch.cat([reward(after[i : i + 1], before[i : i + 1]) for i in range(6)])
    monkeypatch.setattr(preservation, "CHUNK", 2)
    for found in (alone, reward(after, before)):
        torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)


def test_a_picture_on_which_the_model_overflows_has_failed(dinov2: Path) -> None:
    """It is not one that the reward does not apply to."""
    reward = Preservation(str(dinov2), side=42)
    after, before = pictures(3), pictures(3, seed=1)
    expected = reward(after, before).tolist()

    def overflow(_: Any, __: Any, output: Any) -> None:
        output.last_hidden_state[0, -1, 0] = torch.inf

    reward.model.register_forward_hook(overflow)
    assert reward(after, before).tolist() == [torch.inf, *expected[1:]]


def test_equal_conditions_are_embedded_once(dinov2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, features = [], Preservation._features
    monkeypatch.setattr(
        Preservation, "_features", lambda self, part: seen.append(len(part)) or features(self, part)
    )
    Preservation(str(dinov2), side=42)(pictures(6), pictures(2, seed=1)[[0, 0, 1, 0, 1, 1]])
    assert seen == [2, 6]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"changed": 1.0}, "changed=1.0: expected a share"),
        ({"side": 13}, "side=13: expected at least a patch of the model, 14 pixels"),
    ],
)
def test_options_out_of_range_are_refused(dinov2: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Preservation(str(dinov2), **options)


def test_models_of_another_kind_or_incomplete_are_refused(dinov2: Path, tmp_path: Path) -> None:
    other, cut = tmp_path / "clip", tmp_path / "cut"
    config = CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    CLIPVisionModel(config).save_pretrained(other)
    write_dino(cut)
    weights = load_file(cut / "model.safetensors")
    weights.pop("layernorm.weight")
    save_file(weights, cut / "model.safetensors", metadata={"format": "pt"})
    for folder, said in (
        (other, "it is of the kind clip"),
        (cut, "its weights lack 1 parameters, layernorm.weight"),
        (tmp_path / "nowhere", "there is no folder"),
    ):
        with pytest.raises(OSError, match=said):
            Preservation(str(folder))


class TestConformance(RewardConformance):
    plugin = "preservation"
    options: ClassVar[Mapping[str, Any]] = {}

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _folder(cls, dinov2: Path) -> None:
        cls.options = {"model": str(dinov2), "side": 56}
