"""A CLIP model that embeds pictures and prompts."""

from collections.abc import Callable, Sequence
from importlib.resources import files

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from marble_cli.pretrained import HUB, TorchvisionCrop, load_model, loading, resolve_source
from marble_cli.tokenizers import check_tokenizer

# Parameters of published models, for plans.
PUBLISHED = {
    "openai/clip-vit-base-patch16": 149_620_737,
    "openai/clip-vit-base-patch32": 151_277_313,
    "openai/clip-vit-large-patch14": 427_616_513,
    "openai/clip-vit-large-patch14-336": 427_944_193,
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": 986_109_441,
    "yuvalkirstain/PickScore_v1": 986_109_441,
}
CHUNK = 32  # pictures or prompts embedded at once, which bounds the memory for batches of any size

# Maps images uint8 [b, 3, H, W] to the model's input, float [b, 3, side, side].
Preprocess = Callable[[Tensor], Tensor]


def clip_source(model: str, remedy: str = HUB) -> str:
    """Return the folder or the hub repository that an option names; `tiny` is the model that marble carries.

    Raises:
        OSError: the value is written as a path, and there is no such folder.
    """
    if model == "tiny":
        model = str(files("marble_cli") / "assets" / "tiny" / "clip")
    return resolve_source(model, remedy)


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
        """Load the model and its tokenizer.

        Args:
            model: a folder, a repository of the Hugging Face hub, or `tiny`: the one that marble carries.
            device: where to compute.
            dtype: precision of the model.
            remedy: advice for the message if the model cannot be loaded.
            clean: prepares a prompt for the tokenizer.

        Raises:
            OSError: the model cannot be found or fetched, is incomplete, or has no safetensors weights.
        """
        source = clip_source(model, remedy)
        with loading(
            f"the CLIP model {source!r}",
            "the files of a CLIPModel: config.json, model.safetensors and a tokenizer",
            remedy,
        ):
            clip = load_model(CLIPModel, source, dtype)
            self.tokenizer = AutoTokenizer.from_pretrained(source)
            check_tokenizer(self.tokenizer, clip.config.text_config.vocab_size, source)
        self.clean = clean
        self.model = clip.to(device)
        self.side: int = clip.config.vision_config.image_size
        self.length: int = clip.config.text_config.max_position_embeddings
        self.logit_scale: float = clip.logit_scale.double().exp().item()

    @torch.no_grad()
    def images(self, images: Tensor, preprocess: Preprocess) -> Tensor:
        """Embed images uint8 [B, 3, H, W] as [B, D] float32 on the CPU.

        Raises:
            TypeError: the images are not uint8.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"images of type {images.dtype}; expected torch.uint8, 0 to 255")
        return torch.cat([self._image(preprocess(part)) for part in images.split(CHUNK)])

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Embed B prompts, cut to the model's length, as [B, D] float32 on the CPU."""
        prompts = [self.clean(prompt) for prompt in prompts]
        distinct = list(dict.fromkeys(prompts))
        row = {prompt: place for place, prompt in enumerate(distinct)}
        parts = [distinct[start : start + CHUNK] for start in range(0, len(distinct), CHUNK)]
        return torch.cat([self._text(part) for part in parts])[[row[prompt] for prompt in prompts]]

    def cosines(self, images: Tensor, prompts: Sequence[str], preprocess: Preprocess) -> Tensor:
        """Compute the cosine of each image with its prompt.

        Returns:
            [B] float32 on the CPU, in [-1, 1]; infinite, as of a failure, where the model overflowed.
        """
        cosines = (self.images(images, preprocess) * self.texts(prompts)).sum(dim=1).clamp(-1, 1)
        return cosines.masked_fill(cosines.isnan(), torch.inf)

    def _image(self, pixels: Tensor) -> Tensor:
        output = self.model.vision_model(pixel_values=pixels.to(self.model.device, self.model.dtype))
        return normalize(self.model.visual_projection(output.pooler_output).float(), dim=1).cpu()

    def _text(self, prompts: list[str]) -> Tensor:
        tokens = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        ).to(self.model.device)
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        output = self.model.text_model(input_ids=ids, attention_mask=mask)
        return normalize(self.model.text_projection(output.pooler_output).float(), dim=1).cpu()


def preprocessing(model: str, processor: type[CLIPImageProcessorPil] = TorchvisionCrop) -> Preprocess:
    """Return a function that resizes, crops and normalises with Pillow, as preprocessor_config.json says.

    Args:
        model: as for `Clip`.
        processor: determines the centre crop.

    Raises:
        OSError: the configuration cannot be found, fetched or read.
    """
    source = clip_source(model)
    with loading(f"the CLIP model {source!r}", "a preprocessor_config.json next to its weights"):
        reader = processor.from_pretrained(source)

    def preprocess(images: Tensor) -> Tensor:
        inputs = reader(list(images.numpy()), input_data_format="channels_first", return_tensors="pt")
        pixels: Tensor = inputs["pixel_values"]
        return pixels

    return preprocess


def standardise(pixels: Tensor) -> Tensor:
    """Subtract CLIP's mean from pixels [B, 3, H, W] in [0, 1], and divide by its standard deviation."""
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (pixels - mean) / std
