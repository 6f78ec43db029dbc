"""CLIP computed step by step in float64, with Pillow, and tokens looked up here."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import CLIPModel

from .tiny_models import MEAN, STD, WORDS

SIDE, LENGTH = 32, 77
SIZES = [(32, 32), (64, 64), (96, 64), (40, 72), (33, 31), (20, 24), (35, 32), (32, 39)]  # height and width


def pictures(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """uint8 [count, 3, height, width]: noise, which shows every fault of a resize."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def halved(excess: int) -> int:
    """Where torchvision's CenterCrop begins."""
    return round(excess / 2.0)


def cropped(image: Tensor, begin: Callable[[int], int] = halved) -> NDArray[np.float64]:
    """Map uint8 [3, H, W] to [SIDE, SIDE, 3]: Pillow's bicubic resize, centre crop, normalisation."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    width, height = picture.size
    short = min(width, height)
    picture = picture.resize((SIDE * width // short, SIDE * height // short), Image.Resampling.BICUBIC)
    left, top = begin(picture.width - SIDE), begin(picture.height - SIDE)
    return (np.asarray(picture.crop((left, top, left + SIDE, top + SIDE))) / 255 - MEAN) / STD


@cache
def _load(folder: Path) -> CLIPModel:
    return CLIPModel.from_pretrained(folder).double().eval()


def image_embedding(folder: Path, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of pixels [SIDE, SIDE, 3]; length 1."""
    model = _load(folder)
    with torch.no_grad():
        seen = model.vision_model(torch.from_numpy(pixels).permute(2, 0, 1)[None]).pooler_output
        embedding = model.visual_projection(seen)[0].numpy()
    return embedding / np.linalg.norm(embedding)


def text_embedding(folder: Path, prompt: str) -> NDArray[np.float64]:
    """Of a prompt without padding, cut to LENGTH with its two marks; length 1."""
    model = _load(folder)
    words = [WORDS.index(word) if word in WORDS else 1 for word in prompt.split()][: LENGTH - 2]
    with torch.no_grad():
        read = model.text_model(torch.tensor([[0, *words, 1]])).pooler_output
        embedding = model.text_projection(read)[0].numpy()
    return embedding / np.linalg.norm(embedding)


def cosines(
    folder: Path, images: Tensor, prompts: Sequence[str], begin: Callable[[int], int] = halved
) -> NDArray[np.float64]:
    """[B] for images uint8 [B, 3, H, W] that are cropped."""
    pairs = zip(images, prompts, strict=True)
    return np.array(
        [
            image_embedding(folder, cropped(image, begin)) @ text_embedding(folder, prompt)
            for image, prompt in pairs
        ]
    )
