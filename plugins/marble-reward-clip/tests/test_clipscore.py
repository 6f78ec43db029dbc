"""The `clipscore` reward against CLIP computed step by step."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from marble_reward_clip.clipscore import ClipScore, scale_shorter_edge
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from marble_cli.rewards.conformance import RewardConformance

from .reference import SIDE, SIZES, cosines, image_embedding, pictures, text_embedding
from .tiny_models import MEAN, STD


def bilinear(image: Tensor, side: int) -> NDArray[np.float64]:
    """Map uint8 [3, H, W] to [side, side, 3] by Pillow's bilinear filter on floats, channel by channel."""
    short = min(image.shape[1:])
    height, width = (int(side * edge / short) for edge in image.shape[1:])
    top, left = round((height - side) / 2), round((width - side) / 2)
    planes = [
        np.asarray(
            Image.fromarray(plane.numpy().astype(np.float32) / 255).resize(
                (width, height), Image.Resampling.BILINEAR
            )
        )
        for plane in image
    ]
    return (np.stack(planes, axis=-1)[top : top + side, left : left + side] - MEAN) / STD


@pytest.mark.parametrize(("height", "width"), [*SIZES, (512, 512), (224, 231), (231, 224), (333, 512)])
@pytest.mark.parametrize("side", [SIDE, 224])
def test_the_published_resize_is_bilinear_on_floating_numbers(height: int, width: int, side: int) -> None:
    images = pictures(2, height, width)
    expected = np.stack([bilinear(image, side) for image in images]).transpose(0, 3, 1, 2)
    # A value rounded to a byte would be off by up to 7e-3.
    np.testing.assert_allclose(scale_shorter_edge(images, side).numpy(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_published_score_is_the_cosine_of_its_own_pixels(folder: Path, height: int, width: int) -> None:
    images, prompts = pictures(3, height, width), ["a red cup", "two blue kite and a cup", ""]
    expected = [
        image_embedding(folder, bilinear(image, SIDE)) @ text_embedding(folder, prompt)
        for image, prompt in zip(images, prompts, strict=True)
    ]
    published = ClipScore(str(folder), resize="bilinear")(images, prompts)
    assert published.numpy() == pytest.approx(np.array(expected), abs=2e-5)
    if min(height, width) != SIDE:  # else nothing is resized
        assert not torch.allclose(published, ClipScore(str(folder))(images, prompts), atol=1e-4)


@pytest.mark.parametrize("resize", ["bicubic", "", "Bilinear"])
def test_an_unknown_resize_is_refused(folder: Path, resize: str) -> None:
    with pytest.raises(ValueError, match="expected processor or bilinear"):
        ClipScore(str(folder), resize=resize)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_is_the_cosine_of_the_embeddings(folder: Path, height: int, width: int) -> None:
    images, prompts = pictures(3, height, width), ["a red cup", "two blue kite and a cup", ""]
    assert ClipScore(str(folder))(images, prompts).numpy() == pytest.approx(
        cosines(folder, images, prompts), abs=2e-5
    )


class TestClipScoreConformance(RewardConformance):
    plugin = "clipscore"
    options: ClassVar[Mapping[str, Any]] = {"model": "tiny"}


class TestPublishedClipScoreConformance(RewardConformance):
    plugin = "clipscore"
    options: ClassVar[Mapping[str, Any]] = {"model": "tiny", "resize": "bilinear"}
