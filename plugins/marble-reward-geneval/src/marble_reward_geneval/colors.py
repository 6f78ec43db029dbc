"""Name the colour of an object with a CLIP model's zero-shot classification, as GenEval does."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPModel

from marble_cli.pretrained import TorchvisionCrop, load_model, loading, resolve_source
from marble_cli.tokenizers import check_tokenizer
from marble_reward_geneval.classes import COLORS
from marble_reward_geneval.rules import REMEDY, Detection

BACKGROUND = 0x99  # the grey around an object that has a mask
TEMPLATES = (
    "a photo of a {color} {name}",
    "a photo of a {color}-colored {name}",
    "a photo of a {color} object",
)
EXPECTED = (
    "the files of a CLIPModel: config.json, model.safetensors, a tokenizer and preprocessor_config.json"
)


class ColorClassifier:
    """Names the colours of objects; the texts of each class are embedded once."""

    def __init__(self, source: str, device: str | torch.device, dtype: torch.dtype) -> None:
        """Load a CLIP model.

        Args:
            source: a folder or a repository of the Hugging Face hub.
            device: where to compute.
            dtype: precision of the model.

        Raises:
            OSError: the model cannot be found or fetched, is incomplete, or has no safetensors weights.
        """
        source = resolve_source(source)
        with loading(f"the CLIP model {source!r}", EXPECTED):
            model = load_model(CLIPModel, source, dtype)
            self.tokenizer = AutoTokenizer.from_pretrained(source)
            check_tokenizer(self.tokenizer, model.config.text_config.vocab_size, source)
            self.processor = TorchvisionCrop.from_pretrained(source)
        self.model = model.to(device)
        self.length: int = model.config.text_config.max_position_embeddings
        self.texts: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, image: Tensor, objects: Sequence[Detection], name: str) -> list[str]:
        """Name the colour of each object of the class `name` in an image uint8 [3, H, W].

        Raises:
            FloatingPointError: the model overflowed.
        """
        similarities = self.similarities(image, objects, name)
        if similarities.isnan().any():
            raise FloatingPointError(f"the CLIP model of colours overflowed in {self.model.dtype}. {REMEDY}")
        return [COLORS[place] for place in similarities.argmax(1).tolist()]

    @torch.no_grad()
    def similarities(self, image: Tensor, objects: Sequence[Detection], name: str) -> Tensor:
        """Compute the cosines [n, 10] float32 of n objects with the ten colours, on the CPU."""
        crops = [crop(image.numpy(), thing) for thing in objects]
        inputs = self.processor(crops, input_data_format="channels_first", return_tensors="pt")
        pixels = inputs["pixel_values"].to(self.model.device, self.model.dtype)
        embeddings = self.model.get_image_features(pixel_values=pixels).pooler_output
        return (normalize(embeddings.float(), dim=-1) @ self._texts_of(name).T).cpu()

    def _texts_of(self, name: str) -> Tensor:
        """Average the templates' unit embeddings per colour of a class; return them normalised, [10, D]."""
        if name not in self.texts:
            texts = [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]
            tokens = self.tokenizer(
                texts, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
            ).to(self.model.device)
            embedded = self.model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).pooler_output
            unit = normalize(embedded.float(), dim=-1).view(len(COLORS), len(TEMPLATES), -1)
            self.texts[name] = normalize(unit.mean(1), dim=-1)
        return self.texts[name]


def crop(image: NDArray[np.uint8], thing: Detection) -> NDArray[np.uint8]:
    """Cut an object's box from an image [3, H, W], at least one pixel large; grey outside its mask."""
    height, width = image.shape[1:]
    left, top, right, bottom = (round(edge) for edge in thing.box)
    left, top = min(left, width - 1), min(top, height - 1)
    place = np.s_[top : max(bottom, top + 1), left : max(right, left + 1)]
    cut = image[:, *place]
    return cut if thing.mask is None else np.where(thing.mask[place], cut, np.uint8(BACKGROUND))
