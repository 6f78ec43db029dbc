"""How well a picture fits its prompt in the eyes of a CLIP model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from marble_reward_clip.clip import Clip, preprocessing


class ClipScore:
    """Cosine of a CLIP model's embeddings of the picture and of its prompt."""

    range = (-1.0, 1.0)
    license = "Apache-2.0; weights MIT (openai/clip-vit-*, laion/CLIP-ViT-*)"
    citation = "CLIPScore, arXiv 2104.08718; CLIP, arXiv 2103.00020"

    def __init__(
        self,
        model: str = "openai/clip-vit-large-patch14",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Load a CLIP model, its tokenizer and its image processor.

        Args:
            model: a folder, a repository of the Hugging Face hub such as laion/CLIP-ViT-H-14-laion2B-s32B-b79K, or
                `tiny`: the one that marble carries.
            device: where to compute.
            dtype: what to compute in.

        Raises:
            OSError: the model cannot be found or fetched, is incomplete, or has no safetensors weights.
        """
        self.clip = Clip(model, device, dtype)
        self.preprocess = preprocessing(model)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosines [B] float32 on the CPU, in [-1, 1].

        Args:
            images: uint8 [B, 3, H, W]; resized, cropped and normalised as the model's image processor says.
            prompts: B prompts; cut to the model's length.
        """
        return self.clip.cosines(images, prompts, self.preprocess)
