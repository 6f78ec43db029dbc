"""Which picture of a prompt people prefer, learned from the Human Preference Dataset v2."""

import html
from collections.abc import Sequence
from functools import partial

import ftfy
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from marble_reward_clip.clip import Clip

CONVERT = "`python -m marble_reward_clip.convert hpsv2 HPS_v2.1_compressed.pt FOLDER` writes one."
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class HpsV2:
    """Do people prefer this picture for its prompt? Human Preference Score v2.1; about 0.2 to 0.35."""

    range = (-1.0, 1.0)
    license = "Apache-2.0; weights Apache-2.0 (xswu/HPSv2)"
    citation = "Human Preference Score v2, arXiv 2306.09341"

    def __init__(
        self, model: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        """Load the model and its tokenizer.

        Args:
            model: a folder that `python -m marble_reward_clip.convert hpsv2` wrote, or a repository of the Hugging
                Face hub that holds the same. The published weights are pickled; a reward reads none that are.
            device: where to compute.
            dtype: what to compute in.

        Raises:
            OSError: the model cannot be found or fetched, is incomplete, or has no safetensors weights.
        """
        self.clip = Clip(model, device, dtype, CONVERT, repaired)
        self.preprocess = partial(fit_in_square, side=self.clip.side)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosines [B] float32 on the CPU, in [-1, 1].

        Args:
            images: uint8 [B, 3, H, W]; made as long as the model's side and padded with black, see `fit_in_square`.
            prompts: B prompts; repaired, see `repaired`, and cut to the model's length.
        """
        return self.clip.cosines(images, prompts, self.preprocess)


def repaired(prompt: str) -> str:
    """Return `prompt` as open_clip's tokenizer, which the published code uses, reads it.

    Mangled Unicode is mended and curly quotes become straight (ftfy), HTML entities become what they mean, also those
    that were escaped twice, white space becomes single blanks, and letters are lower case.
    """
    unescaped = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return " ".join(unescaped.split()).lower()


def fit_in_square(images: Tensor, side: int) -> Tensor:
    """Scale the longer edge to `side`, pad the shorter one with black on both sides and normalise.

    The published code turns a picture into numbers in [0, 1] before it resizes it, so values are neither rounded nor
    clipped in between as they would be by Pillow.

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
    return (pixels - pixels.new_tensor(MEAN)[:, None, None]) / pixels.new_tensor(STD)[:, None, None]
