"""The `hpsv2` reward: which picture of a prompt people prefer, by Human Preference Score v2.1."""

import html
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import ftfy
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from marble_cli.rewards.testing.pictures import prompt_examples
from marble_reward_clip.clip import PUBLISHED, Clip, standardise

CONVERT = "`python -m marble_reward_clip.convert hpsv2 HPS_v2.1_compressed.pt FOLDER` writes one."


class HpsV2:
    """Preference of people for the picture, given its prompt: HPS v2.1; about 0.2 to 0.35."""

    range = (-1.0, 1.0)
    license = "Apache-2.0; weights Apache-2.0 (xswu/HPSv2)"
    citation = "Human Preference Score v2, arXiv 2306.09341"
    loads: ClassVar = {"model": PUBLISHED}
    examples = staticmethod(prompt_examples)

    def __init__(
        self, model: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        """Load the model and its tokenizer.

        Args:
            model: a folder that `python -m marble_reward_clip.convert hpsv2` wrote, or a repository of the
                Hugging Face hub with the same files. The published weights are pickled, and rewards read no
                pickled file.
            device: where to compute.
            dtype: precision of the model.

        Raises:
            OSError: the model cannot be found or fetched, is incomplete, or has no safetensors weights.
        """
        self.clip = Clip(model, device, dtype, CONVERT, repair)
        self.preprocess = partial(fit_in_square, side=self.clip.side)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score a batch.

        Args:
            images: uint8 [B, 3, H, W]; scaled to the model's side and padded with black, see `fit_in_square`.
            prompts: B prompts; repaired, see `repair`, and cut to the model's length.

        Returns:
            Cosines [B] float32 on the CPU, in [-1, 1].
        """
        return self.clip.cosines(images, prompts, self.preprocess)


def repair(prompt: str) -> str:
    """Clean a prompt as open_clip's tokenizer does, which the published code uses.

    Repairs mangled Unicode and straightens curly quotes (ftfy), resolves HTML entities that are escaped once
    or twice, turns white space into single blanks and letters into lower case.
    """
    unescaped = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return " ".join(unescaped.split()).lower()


def fit_in_square(images: Tensor, side: int) -> Tensor:
    """Scale the longer edge to `side`, pad the shorter one with black on both sides and normalise.

    The published code converts pictures to [0, 1] before resizing, so values are neither rounded nor clipped
    in between, as Pillow would do.

    Args:
        images: uint8 [B, 3, H, W].
        side: pixels.

    Returns:
        float32 [B, 3, side, side].
    """
    scale = side / max(images.shape[2:])
    height, width = (round(edge * scale) for edge in images.shape[2:])
    pixels = interpolate(images / 255, (height, width), mode="bicubic", antialias=True)
    top, left = (side - height) // 2, (side - width) // 2
    pixels = pad(pixels, (left, side - width - left, top, side - height - top))
    return standardise(pixels)
