"""Which of a prompt's pictures people would rank higher, learned from experts' rankings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer

from marble_cli.tokenizers import check_tokenizer
from marble_reward_imagereward.loading import loading
from marble_reward_imagereward.model import ImageRewardModel

CHUNK = 16  # pictures scored at once: bounds the memory that a batch takes, whatever its size
LENGTH = 35  # words of a prompt that are read
CONVERT = "`python -m marble_reward_imagereward.convert ImageReward.pt FOLDER` writes one."
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ImageReward:
    """Would people rank this picture high for its prompt? ImageReward v1.0; about -2 to 2, mean 0."""

    license = "Apache-2.0; weights Apache-2.0 (THUDM/ImageReward)"
    citation = "ImageReward, arXiv 2304.05977; BLIP, arXiv 2201.12086"

    def __init__(
        self, model: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        """Load the model and its tokenizer.

        Args:
            model: a folder that `python -m marble_reward_imagereward.convert` wrote, or a repository of the Hugging
                Face hub that holds the same. The published weights are pickled; a reward reads none that are.
            device: where to compute.
            dtype: what to compute in; the head computes in float32.

        Raises:
            OSError: the model cannot be found or fetched, is incomplete, or has no safetensors weights.
        """
        folder = Path(model).expanduser()
        written_as_path = folder.is_absolute() or model.startswith(".")
        if written_as_path and not folder.is_dir():
            raise OSError(f"there is no folder {str(folder)!r} to load a model from. {CONVERT}")
        source = str(folder) if written_as_path else model
        with loading(
            f"the ImageReward model {source!r}",
            "config.json, model.safetensors and a tokenizer",
            CONVERT,
        ):
            loaded: Any = ImageRewardModel.from_pretrained(
                source, dtype=dtype, use_safetensors=True, output_loading_info=True
            )
            network, report = loaded
            if report["missing_keys"]:  # they would be drawn at random
                raise ValueError(f"its weights lack {', '.join(sorted(report['missing_keys'])[:3])}")
            self.tokenizer = AutoTokenizer.from_pretrained(source)
            check_tokenizer(self.tokenizer, network.config.text_config.vocab_size, source)
        self.model = network.to(device).eval().requires_grad_(False)
        self.side: int = network.config.vision_config.image_size

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] float32 on the CPU.

        Args:
            images: uint8 [B, 3, H, W]; see `preprocess`.
            prompts: B prompts; cut to 35 words and marks.

        Raises:
            TypeError: the images are not uint8.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"images of type {images.dtype}; expected torch.uint8, 0 to 255")
        starts = range(0, len(images), CHUNK)
        parts = [self._scores(images[i : i + CHUNK], list(prompts[i : i + CHUNK])) for i in starts]
        return torch.cat(parts)

    def _scores(self, images: Tensor, prompts: list[str]) -> Tensor:
        pixels = torch.stack([preprocess(image, self.side) for image in images])
        words = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
        ).to(self.model.device)
        pixels = pixels.to(self.model.device, self.model.dtype)
        scores: Tensor = self.model(pixels, words["input_ids"], words["attention_mask"])
        return scores.cpu()


def preprocess(image: Tensor, side: int) -> Tensor:
    """Shorter edge to `side` with Pillow's bicubic filter, centre crop, normalised.

    Sizes and offsets are rounded as torchvision does it, which the published code uses.

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
    return (pixels - pixels.new_tensor(PIXEL_MEAN)[:, None, None]) / pixels.new_tensor(PIXEL_STD)[
        :, None, None
    ]
