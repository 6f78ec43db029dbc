"""The `clipscore` reward: the cosine of a CLIP model's embeddings of picture and prompt."""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from marble_cli.rewards.testing.pictures import prompt_examples
from marble_reward_clip.clip import PUBLISHED, Clip, preprocessing, standardise


class ClipScore:
    """Cosine of a CLIP model's embeddings of the picture and of its prompt."""

    range = (-1.0, 1.0)
    license = "Apache-2.0; weights MIT (openai/clip-vit-*, laion/CLIP-ViT-*)"
    citation = "CLIPScore, arXiv 2104.08718; CLIP, arXiv 2103.00020"
    loads: ClassVar = {"model": PUBLISHED}
    examples = staticmethod(prompt_examples)

    def __init__(
        self,
        model: str = "openai/clip-vit-large-patch14",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        resize: str = "processor",
    ) -> None:
        """Load a CLIP model, its tokenizer and its image processor.

        Args:
            model: a folder, a repository of the Hugging Face hub such as
                laion/CLIP-ViT-H-14-laion2B-s32B-b79K, or `tiny`: the one that marble carries.
            device: where to compute.
            dtype: precision of the model.
            resize: `processor` resizes as the model's image processor says; `bilinear` as the published
                scorer of DiffusionNFT and MARBLE does, see `scale_shorter_edge`.

        Raises:
            ValueError: `resize` has another value.
            OSError: the model cannot be found or fetched, is incomplete, or has no safetensors weights.
        """
        if resize not in ("processor", "bilinear"):
            raise ValueError(f"resize={resize!r}: expected processor or bilinear")
        self.clip = Clip(model, device, dtype)
        bilinear = partial(scale_shorter_edge, side=self.clip.side)
        self.preprocess = bilinear if resize == "bilinear" else preprocessing(model)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score a batch.

        Args:
            images: uint8 [B, 3, H, W]; resized, cropped and normalised as `resize` says.
            prompts: B prompts; cut to the model's length.

        Returns:
            Cosines [B] float32 on the CPU, in [-1, 1].
        """
        return self.clip.cosines(images, prompts, self.preprocess)


def scale_shorter_edge(images: Tensor, side: int) -> Tensor:
    """Scale the shorter edge to `side` by an antialiased bilinear filter, crop the centre and normalise.

    Values are neither rounded nor clipped in between. As in torchvision, the longer edge is rounded down and
    the crop's corner to an even number.

    Args:
        images: uint8 [B, 3, H, W].
        side: pixels.

    Returns:
        float32 [B, 3, side, side], with CLIP's mean and deviation.

    Source: the scorer published with arXiv 2509.16117.
    """
    short = min(images.shape[2:])
    height, width = (side * edge // short for edge in images.shape[2:])
    pixels = interpolate(images / 255, (height, width), mode="bilinear", antialias=True)
    top, left = round((height - side) / 2), round((width - side) / 2)
    pixels = pixels[..., top : top + side, left : left + side]
    return standardise(pixels)
