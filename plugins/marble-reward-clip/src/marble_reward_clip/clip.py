"""A CLIP model that embeds pictures and prompts."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from marble_cli.tokenizers import check_tokenizer
from marble_reward_clip.loading import HUB, loading, locate

CHUNK = 32  # pictures or prompts embedded at once: bounds the memory that a batch takes, whatever its size

# From uint8 [b, 3, H, W] to what the model looks at, float [b, 3, side, side].
Preprocess = Callable[[Tensor], Tensor]


class Clip:
    """A CLIP model with its tokenizer; embeddings have length 1."""

    def __init__(
        self,
        model: str,
        device: str | torch.device,
        dtype: torch.dtype,
        remedy: str = HUB,
        clean: Callable[[str], str] = str,
    ) -> None:
        """Load it.

        Args:
            model: a folder, a repository of the Hugging Face hub, or `tiny`: the one that marble carries.
            device: where to compute.
            dtype: what to compute in.
            remedy: what to do where it cannot be loaded.
            clean: what is done to a prompt before the tokenizer reads it.

        Raises:
            OSError: the model cannot be found or fetched, is incomplete, or has no safetensors weights.
        """
        source = locate(model, remedy)
        with loading(
            f"the CLIP model {source!r}",
            "the files of a CLIPModel: config.json, model.safetensors and a tokenizer",
            remedy,
        ):
            loaded: Any = CLIPModel.from_pretrained(
                source, dtype=dtype, use_safetensors=True, output_loading_info=True
            )
            clip, report = loaded
            if report["missing_keys"]:  # they would be drawn at random
                raise ValueError(f"its weights lack {', '.join(sorted(report['missing_keys'])[:3])}")
            self.tokenizer = AutoTokenizer.from_pretrained(source)
            check_tokenizer(self.tokenizer, clip.config.text_config.vocab_size, source)
        self.clean = clean
        self.model = clip.to(device).eval().requires_grad_(False)
        self.side: int = clip.config.vision_config.image_size
        self.length: int = clip.config.text_config.max_position_embeddings
        self.logit_scale: float = clip.logit_scale.double().exp().item()

    @torch.no_grad()
    def images(self, images: Tensor, preprocess: Preprocess) -> Tensor:
        """Embeddings [B, D] float32 on the CPU of images uint8 [B, 3, H, W].

        Raises:
            TypeError: the images are not uint8.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"images of type {images.dtype}; expected torch.uint8, 0 to 255")
        return torch.cat([self._image(preprocess(part)) for part in images.split(CHUNK)])

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [B, D] float32 on the CPU of B prompts, cut to the model's length."""
        prompts = [self.clean(prompt) for prompt in prompts]
        distinct = list(dict.fromkeys(prompts))
        row = {prompt: place for place, prompt in enumerate(distinct)}
        parts = [distinct[start : start + CHUNK] for start in range(0, len(distinct), CHUNK)]
        return torch.cat([self._text(part) for part in parts])[[row[prompt] for prompt in prompts]]

    def cosines(self, images: Tensor, prompts: Sequence[str], preprocess: Preprocess) -> Tensor:
        """Cosine [B] float32 on the CPU, in [-1, 1], of each image with its prompt."""
        return (self.images(images, preprocess) * self.texts(prompts)).sum(dim=1).clamp(-1, 1)

    def _image(self, pixels: Tensor) -> Tensor:
        seen = self.model.vision_model(pixel_values=pixels.to(self.model.device, self.model.dtype))
        return normalize(self.model.visual_projection(seen.pooler_output).float(), dim=1).cpu()

    def _text(self, prompts: list[str]) -> Tensor:
        words = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        ).to(self.model.device)
        read = self.model.text_model(input_ids=words["input_ids"], attention_mask=words["attention_mask"])
        return normalize(self.model.text_projection(read.pooler_output).float(), dim=1).cpu()


class TorchvisionCrop(CLIPImageProcessorPil):
    """Crops the centre as torchvision does, and with it open_clip and OpenAI's CLIP.

    Where the excess is odd, half of it is rounded to an even number; transformers rounds it down.
    """

    def center_crop(self, image: NDArray[Any], size: Any, **more: Any) -> NDArray[Any]:  # type: ignore[override]
        """Cut `size` from an image [C, H, W] that is at least as large; a smaller one is left to transformers."""
        height, width = image.shape[-2:]
        if height < size.height or width < size.width:
            return super().center_crop(image, size, **more)
        top, left = round((height - size.height) / 2), round((width - size.width) / 2)
        return image[..., top : top + size.height, left : left + size.width]


def preprocessing(model: str, processor: type[CLIPImageProcessorPil] = TorchvisionCrop) -> Preprocess:
    """Resize, crop and normalise with Pillow as the model's preprocessor_config.json says.

    Args:
        model: as of `Clip`.
        processor: whose centre crop it is.

    Raises:
        OSError: it cannot be found, fetched or read.
    """
    source = locate(model)
    with loading(f"the CLIP model {source!r}", "a preprocessor_config.json beside its weights"):
        reader = processor.from_pretrained(source)

    def preprocess(images: Tensor) -> Tensor:
        made = reader(list(images.numpy()), input_data_format="channels_first", return_tensors="pt")
        pixels: Tensor = made["pixel_values"]
        return pixels

    return preprocess
