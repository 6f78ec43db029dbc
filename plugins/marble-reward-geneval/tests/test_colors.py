"""Colours: crops and CLIP's cosines against computations written out here."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from marble_reward_geneval.classes import COLORS
from marble_reward_geneval.colors import ColorClassifier, crop
from marble_reward_geneval.rules import Detection
from PIL import Image
from torch import Tensor
from transformers import CLIPModel

Pictures = Callable[..., Tensor]

CROP = 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_crop_is_grey_outside_the_mask() -> None:
    image = np.arange(3 * 6 * 8, dtype=np.uint8).reshape(3, 6, 8)
    mask = np.zeros((6, 8), bool)
    mask[1:4, 2:5] = True
    mask[1, 2] = False
    cut = crop(image, Detection((2.0, 1.0, 5.0, 4.0), 1.0, mask))
    assert cut.shape == (3, 3, 3)
    assert cut[:, 0, 0].tolist() == [0x99] * 3
    assert np.array_equal(cut[:, 1:], image[:, 2:4, 2:5])
    whole = crop(image, Detection((1.6, 0.4, 5.2, 3.7), 1.0))  # rounded: 2, 0, 5, 4
    assert np.array_equal(whole, image[:, 0:4, 2:5])
    assert crop(image, Detection((8.0, 6.0, 8.0, 6.0), 1.0)).shape == (3, 1, 1)


def test_colours_are_the_nearest_texts(pictures: Pictures, clip: Path, tiny: ModuleType) -> None:
    """Compares cosines with CLIP in float64, one text and one crop at a time, with tokens looked up here."""
    model = CLIPModel.from_pretrained(clip).double().eval()
    classifier = ColorClassifier(str(clip), "cpu", torch.float32)
    words = classifier.tokenizer.get_vocab()

    def text(sentence: str) -> np.ndarray:
        numbers = [words[word] for word in sentence.replace("-", " - ").split()]
        with torch.no_grad():
            state = model.text_model(torch.tensor([[0, *numbers, 1]])).pooler_output
            row = model.text_projection(state)[0].numpy()
        return np.asarray(row / np.linalg.norm(row))

    def picture(pixels: np.ndarray) -> np.ndarray:
        image = Image.fromarray(pixels)
        scale = CROP / min(image.size)
        width, height = (int(side * scale) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (round((side - CROP) / 2.0) for side in (width, height))  # as torchvision
        values = (np.asarray(image.crop((left, top, left + CROP, top + CROP))) / 255 - MEAN) / STD
        with torch.no_grad():
            state = model.vision_model(torch.from_numpy(values).permute(2, 0, 1)[None]).pooler_output
            row = model.visual_projection(state)[0].numpy()
        return np.asarray(row / np.linalg.norm(row))

    image = pictures(1, 60, 80, seed=3)[0]
    mask = np.zeros((60, 80), bool)
    mask[10:40, 20:70] = True
    mask[10:20, 20:30] = False
    # Odd excesses, most.
    boxes = [
        (5, 5, 37, 50),
        (5, 5, 37, 40),
        (5, 5, 44, 37),
        (5, 5, 52, 37),
        (5, 5, 38, 37),
    ]
    things = [Detection((20.0, 10.0, 70.0, 40.0), 0.9, mask)]
    things += [Detection(tuple(float(edge) for edge in box), 0.8) for box in boxes]  # type: ignore[arg-type]
    pixels = image.permute(1, 2, 0).numpy()
    grey = np.where(mask[..., None], pixels, np.uint8(153))
    seen = [picture(grey[10:40, 20:70].copy())]
    seen += [picture(pixels[top:bottom, left:right].copy()) for left, top, right, bottom in boxes]
    name = "computer mouse"
    expected = np.zeros((len(things), 10))
    for place, color in enumerate(COLORS):
        texts = [
            f"a photo of a {color} {name}",
            f"a photo of a {color}-colored {name}",
            f"a photo of a {color} object",
        ]
        mean = np.mean([text(sentence) for sentence in texts], axis=0)
        expected[:, place] = [one @ mean / np.linalg.norm(mean) for one in seen]
    assert classifier.similarities(image, things, name).numpy() == pytest.approx(expected, abs=2e-5)
    assert classifier(image, things, name) == [COLORS[row.argmax()] for row in expected]
