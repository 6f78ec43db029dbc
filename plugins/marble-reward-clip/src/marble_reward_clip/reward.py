"""How well a picture fits its prompt in the eyes of a CLIP model."""

import importlib.resources
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel
from transformers.utils import logging


class ClipScore:
    """Cosine of a CLIP model's embeddings of the picture and of its prompt."""

    range = (-1.0, 1.0)
    license = "Apache-2.0; weights MIT (openai/clip-vit-*)"
    citation = "CLIPScore, arXiv 2104.08718; CLIP, arXiv 2103.00020"

    def __init__(
        self,
        model: str = "openai/clip-vit-large-patch14",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Load a CLIP model, its tokenizer and its image processor.

        Args:
            model: a folder, a repository of the Hugging Face hub, or `tiny`: the one that marble carries.
            device: where to compute.
            dtype: what to compute in.

        Raises:
            OSError: the model cannot be found or fetched, or has no safetensors weights.
        """
        source = _locate(model)
        try:
            with _quiet():
                clip = CLIPModel.from_pretrained(source, dtype=dtype, use_safetensors=True)
                self.tokenizer = AutoTokenizer.from_pretrained(source)
                self.processor = CLIPImageProcessorPil.from_pretrained(source)
        except Exception as error:  # the hub's client raises many kinds
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise OSError(
                f"the CLIP model {source!r} cannot be loaded: {reason} Expected the files of a CLIPModel: "
                "config.json, model.safetensors, a tokenizer and preprocessor_config.json. Where the hub cannot be "
                "reached, fetch them elsewhere with `hf download` and give the folder."
            ) from error
        self.model = clip.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
        self.length: int = self.model.config.text_config.max_position_embeddings

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosines [B] float32 on the CPU, in [-1, 1].

        Args:
            images: uint8 [B, 3, H, W]; resized, cropped and normalised as the model's image processor says.
            prompts: B prompts; cut to the model's length.
        """
        distinct = list(dict.fromkeys(prompts))
        row = {prompt: place for place, prompt in enumerate(distinct)}
        text = self.tokenizer(
            distinct, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        pixels = self.processor(list(images.numpy()), input_data_format="channels_first", return_tensors="pt")
        answer = self.model(
            input_ids=text["input_ids"].to(self.model.device),
            attention_mask=text["attention_mask"].to(self.model.device),
            pixel_values=pixels["pixel_values"].to(self.model.device, self.model.dtype),
        )
        texts = answer.text_embeds[[row[prompt] for prompt in prompts]]
        return torch.cosine_similarity(answer.image_embeds.float(), texts.float()).clamp(-1, 1).cpu()


def _locate(model: str) -> str:
    """The folder or hub repository that `model` means."""
    if model == "tiny":
        try:
            model = str(importlib.resources.files("marble_cli") / "assets" / "tiny" / "clip")
        except ModuleNotFoundError as error:
            raise OSError(
                "model='tiny' is the CLIP model that marble carries; marble is not installed"
            ) from error
    if Path(model).expanduser().is_absolute() or model.startswith("."):
        folder = Path(model).expanduser()
        if not folder.is_dir():
            raise OSError(f"there is no folder {str(folder)!r} with a CLIP model")
        return str(folder)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar while weights are loaded."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
