"""The `imagereward` reward: which pictures of a prompt people rank higher, learned from experts' rankings."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from marble_cli.pretrained import load_model, loading, resolve_source
from marble_cli.rewards.testing.pictures import prompt_examples
from marble_cli.tokenizers import check_tokenizer
from marble_reward_imagereward.model import ImageRewardModel

CHUNK = 16  # pictures scored at once, which bounds the memory for batches of any size
LENGTH = 35  # tokens of a prompt; the rest is cut
CONVERT = "`python -m marble_reward_imagereward.convert ImageReward.pt FOLDER` writes one."


class ImageReward:
    """Rank of the picture for its prompt in the eyes of people: ImageReward v1.0; about -2 to 2, mean 0."""

    license = "Apache-2.0; weights Apache-2.0 (THUDM/ImageReward)"
    citation = "ImageReward, arXiv 2304.05977; BLIP, arXiv 2201.12086"
    loads: ClassVar[dict[str, dict[str, int]]] = {"model": {}}
    examples = staticmethod(prompt_examples)

    def __init__(
        self, model: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        """Load the model and its tokenizer.

        Args:
            model: a folder that `python -m marble_reward_imagereward.convert` wrote, or a repository of the
                Hugging Face hub with the same files. The published weights are pickled, and rewards read no
                pickled file.
            device: where to compute.
            dtype: precision of the encoders; the head computes in float32.

        Raises:
            OSError: the model cannot be found or fetched, is incomplete, or has no safetensors weights.
        """
        source = resolve_source(model, CONVERT)
        expected = "config.json, model.safetensors and a tokenizer"
        with loading(f"the ImageReward model {source!r}", expected, CONVERT):
            network = load_model(ImageRewardModel, source, dtype)
            self.tokenizer = AutoTokenizer.from_pretrained(source)
            check_tokenizer(self.tokenizer, network.config.text_config.vocab_size, source)
        self.model = network.to(device)
        self.side: int = network.config.vision_config.image_size

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score a batch.

        Args:
            images: uint8 [B, 3, H, W]; see `preprocess`.
            prompts: B prompts; cut to 35 tokens.

        Returns:
            [B] float32 on the CPU; infinite, as of a failure, where the model overflowed.

        Raises:
            TypeError: the images are not uint8.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"images of type {images.dtype}; expected torch.uint8, 0 to 255")
        starts = range(0, len(images), CHUNK)
        parts = [self._scores(images[i : i + CHUNK], list(prompts[i : i + CHUNK])) for i in starts]
        scores = torch.cat(parts)
        return scores.masked_fill(scores.isnan(), torch.inf)

    def _scores(self, images: Tensor, prompts: list[str]) -> Tensor:
        pixels = torch.stack([preprocess(image, self.side) for image in images])
        tokens = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
        ).to(self.model.device)
        pixels = pixels.to(self.model.device, self.model.dtype)
        scores: Tensor = self.model(pixels, tokens["input_ids"], tokens["attention_mask"])
        return scores.cpu()


def preprocess(image: Tensor, side: int) -> Tensor:
    """Scale the shorter edge to `side` with Pillow's bicubic filter, crop the centre and normalise.

    Sizes and offsets are rounded as in torchvision, which the published code uses.

    Args:
        image: uint8 [3, H, W].
        side: pixels.

    Returns:
        float32 [3, side, side].
    """
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    short = min(picture.size)
    width, height = (side if edge == short else int(side * edge / short) for edge in picture.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    picture = picture.crop((left, top, left + side, top + side))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (pixels - mean) / std
