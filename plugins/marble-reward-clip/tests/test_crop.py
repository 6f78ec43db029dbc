"""Where the centre crop of an odd excess begins: by torchvision's rule, written out, or by transformers'."""

from pathlib import Path

import torch
from marble_reward_clip.aesthetic import Aesthetic
from marble_reward_clip.clipscore import ClipScore
from marble_reward_clip.pickscore import PickScore
from torch import Tensor

from .reference import SIDE, pictures
from .tiny_models import MEAN, STD

TORCHVISION = [0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5, 6]  # int(round(excess / 2.0)) for 0, 1, 2, ...
TRANSFORMERS = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]  # excess // 2


def assert_begins(reward: ClipScore | Aesthetic | PickScore, begins: list[int]) -> None:
    for excess, begin in enumerate(begins):
        for high in (True, False):
            size = (SIDE + excess, SIDE) if high else (SIDE, SIDE + excess)
            image = pictures(1, *size)
            kept = image.narrow(2 if high else 3, begin, SIDE)
            expected = (kept / 255 - column(MEAN)) / column(STD)
            torch.testing.assert_close(reward.preprocess(image), expected, rtol=0, atol=1e-5)


def column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values)[:, None, None]


def test_clipscore_and_aesthetic_crop_as_torchvision(folder: Path, predictor: Path) -> None:
    assert_begins(ClipScore(str(folder)), TORCHVISION)
    assert_begins(Aesthetic(str(folder), str(predictor)), TORCHVISION)


def test_pickscore_crops_as_its_published_code(folder: Path) -> None:
    assert_begins(PickScore(str(folder)), TRANSFORMERS)
