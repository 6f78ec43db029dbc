"""The `hpsv2` reward against CLIP on a picture that is fitted into a square, not cropped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from marble_reward_clip.clipscore import ClipScore
from marble_reward_clip.hpsv2 import HpsV2, fit_in_square, repair
from marble_reward_clip.pickscore import PickScore
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from marble_cli.rewards.conformance import RewardConformance

from .reference import SIDE, SIZES, image_embedding, pictures, text_embedding
from .tiny_models import MEAN, STD


def fitted(image: Tensor, side: int) -> NDArray[np.float64]:
    """Map uint8 [3, H, W] to [side, side, 3] by Pillow's bicubic filter on floats, on a black ground."""
    height, width = (round(edge * side / max(image.shape[1:])) for edge in image.shape[1:])
    square = np.zeros((side, side, 3))
    top, left = (side - height) // 2, (side - width) // 2
    for channel in range(3):
        flat = Image.fromarray(image[channel].numpy().astype(np.float32) / 255)
        resized = np.asarray(flat.resize((width, height), Image.Resampling.BICUBIC))
        square[top : top + height, left : left + width, channel] = resized
    return (square - MEAN) / STD


@pytest.mark.parametrize(("height", "width"), [*SIZES, (224, 100), (333, 512), (100, 7)])
@pytest.mark.parametrize("side", [SIDE, 224])
def test_a_picture_is_fitted_into_the_square(height: int, width: int, side: int) -> None:
    images = pictures(2, height, width)
    expected = np.stack([fitted(image, side) for image in images]).transpose(0, 3, 1, 2)
    # A value rounded to a byte would be off by up to 7e-3.
    np.testing.assert_allclose(fit_in_square(images, side).numpy(), expected, rtol=0, atol=1e-4)


def test_fitting_neither_rounds_nor_clips() -> None:
    edge = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    edge[..., 4:] = 255
    pixels = fit_in_square(edge, 32) * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    assert pixels.min() < -0.01
    assert pixels.max() > 1.01


def test_picture_of_the_models_size_is_only_normalised() -> None:
    image = pictures(1, SIDE, SIDE)
    pixels = fit_in_square(image, SIDE)[0].permute(1, 2, 0).numpy()
    assert pixels == pytest.approx((image[0].permute(1, 2, 0).numpy() / 255 - MEAN) / STD, abs=1e-6)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_score_is_the_cosine_of_the_embeddings(folder: Path, height: int, width: int) -> None:
    images, prompts = pictures(3, height, width), ["a red cup", "two blue kite and a cup", ""]
    expected = [
        image_embedding(folder, fitted(image, SIDE)) @ text_embedding(folder, prompt)
        for image, prompt in zip(images, prompts, strict=True)
    ]
    assert HpsV2(str(folder))(images, prompts).numpy() == pytest.approx(expected, abs=2e-5)


READ_ALIKE = [
    ("“47” on a ‘red’ cup", "\"47\" on a 'red' cup"),  # curly quotes
    ("a sign that says â€œ47â€\x9d", 'a sign that says "47"'),  # UTF-8 that was read as Windows-1252
    ("cafÃ© crÃ¨me", "café crème"),
    ("a cup &amp; a kite", "a cup & a kite"),
    ("a &amp;quot;cup&amp;quot;", 'a "cup"'),  # escaped twice
    ("\ta  red\u00a0cup\n", "a red cup"),
    ("A Red CUP", "a red cup"),
    ("ｗｉｄｅ ﬁne cafe\u0301", "wide fine café"),  # other forms of the same letters
    ("it's 47 … a red cup", "it's 47 … a red cup"),
    ("", ""),
]


@pytest.mark.parametrize(("prompt", "read"), READ_ALIKE)
def test_prompts_are_repaired(prompt: str, read: str) -> None:
    """As by open_clip's tokenizer; the right column is what that hands to its byte pairs."""
    assert repair(prompt) == read
    texts = HpsV2("tiny").clip.texts([prompt, read])
    assert torch.equal(texts[0], texts[1])


def test_only_hpsv2_repairs_prompts() -> None:
    """The published code of the other two reads them by transformers."""
    image, pair = pictures(1, 64, 64).expand(2, -1, -1, -1), ["a “47” &amp; a cup", 'a "47" & a cup']
    hpsv2, pickscore, clipscore = (reward("tiny")(image, pair) for reward in (HpsV2, PickScore, ClipScore))
    assert hpsv2[0] == hpsv2[1]
    assert pickscore[0] != pickscore[1]
    assert clipscore[0] != clipscore[1]


def test_needs_no_image_processor(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if file.name != "preprocessor_config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    images = pictures(2, 40, 40)
    assert torch.equal(HpsV2(str(tmp_path))(images, ["a cup", ""]), HpsV2(str(folder))(images, ["a cup", ""]))


class TestHpsV2Conformance(RewardConformance):
    plugin = "hpsv2"
    options: ClassVar[Mapping[str, Any]] = {"model": "tiny"}
