"""The `pickscore` reward: which picture of a prompt people would pick, learned from Pick-a-Pic."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from transformers import CLIPImageProcessorPil

from marble_cli.rewards.testing.pictures import prompt_examples
from marble_reward_clip.clip import PUBLISHED, Clip, preprocessing


class PickScore:
    """Preference of people for the picture, given its prompt: CLIP fine-tuned on Pick-a-Pic; about 20."""

    license = "Apache-2.0; weights under no stated license (yuvalkirstain/PickScore_v1)"
    citation = "Pick-a-Pic, arXiv 2305.01569"
    loads: ClassVar = {"model": PUBLISHED}
    examples = staticmethod(prompt_examples)

    def __init__(
        self,
        model: str = "yuvalkirstain/PickScore_v1",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Load the model, its tokenizer and its image processor.

        Args:
            model: a folder or a repository of the Hugging Face hub.
            device: where to compute.
            dtype: precision of the model.

        Raises:
            OSError: the model cannot be found or fetched, is incomplete, or has no safetensors weights.
        """
        self.clip = Clip(model, device, dtype)
        # The published code prepares pictures and prompts by transformers alone.
        self.preprocess = preprocessing(model, CLIPImageProcessorPil)
        self.range = (-self.clip.logit_scale, self.clip.logit_scale)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score a batch as in section 4 of the paper; Flow-GRPO and DiffusionNFT divide this by 26.

        Args:
            images: uint8 [B, 3, H, W]; resized, cropped and normalised as the model's image processor says.
            prompts: B prompts; cut to the model's length.

        Returns:
            exp(logit_scale) * cosine [B] float64 on the CPU.
        """
        return self.clip.logit_scale * self.clip.cosines(images, prompts, self.preprocess).double()
