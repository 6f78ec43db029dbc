"""Stable Diffusion 3 family: SD3, SD3.5-Medium and Large, and the embedded `tiny` model, by one loading path."""

import json
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
import transformers
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import LoraConfig
from torch import Tensor

from marble_cli.config.schema import Model, Precision
from marble_cli.errors import RequestError
from marble_cli.policy.adapters import LoraPair, add_adapter
from marble_cli.policy.base import Adapter, ModelSize, PromptEmbeddings

DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}
DECODED_PIXELS = {
    "cpu": 2**17,
    "cuda": 2**21,
}  # at once: a GPU's memory bounds them; on a CPU larger buffers are slower


def model_source(path: str) -> str:
    """The folder or hub id that `model.path` names; `tiny` is the embedded model."""
    if path == "tiny":
        return str(files("marble_cli") / "assets" / "tiny" / "pipeline")
    return path


def local_folder(path: str) -> Path | None:
    """The pipeline's folder on this machine; None if `path` is a hub id.

    Raises:
        RequestError: `path` is a folder's, and no pipeline is in it.
    """
    source = model_source(path)
    folder = Path(source).expanduser()
    if not source.startswith((".", "/", "~")) and not folder.exists():
        return None
    if not (folder / "model_index.json").is_file():
        raise RequestError(
            f"model.path={path}: no model_index.json there. Expected a folder written by save_pretrained "
            "of a StableDiffusion3Pipeline, a hub id such as stabilityai/stable-diffusion-3.5-medium, or tiny."
        )
    return folder


def load_pipeline(model: Model, device: torch.device) -> StableDiffusion3Pipeline:
    """The frozen pipeline in `model.precision` on `device`.

    Raises:
        RequestError: the folder or hub id holds no Stable Diffusion 3 pipeline or cannot be reached.
    """
    _quiet()
    folder = local_folder(model.path)
    try:
        pipeline = StableDiffusion3Pipeline.from_pretrained(
            str(folder or model.path),
            revision=model.revision,
            dtype=DTYPES[model.precision],
            use_safetensors=True,
            **({"text_encoder_3": None, "tokenizer_3": None} if model.max_sequence_length == 0 else {}),
        )
    except (OSError, ValueError, TypeError) as error:
        raise RequestError(
            f"model.path={model.path} could not be loaded: {str(error).splitlines()[0]}. "
            "Expected a StableDiffusion3Pipeline folder, a reachable hub id, or tiny."
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _quiet() -> None:
    """The libraries' own progress bars would tear the run's view apart."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def model_size(model: Model) -> ModelSize | None:
    """Sizes read off a local model's configuration files; None if it is not on this machine.

    Raises:
        RequestError: the folder holds no pipeline, or the resolution does not fit it.
    """
    folder = local_folder(model.path)
    if folder is None:
        return None
    with torch.device("meta"):
        transformer = SD3Transformer2DModel.from_config(_json(folder / "transformer" / "config.json"))
        parameters = sum(p.numel() for p in transformer.parameters())
        lora = LoraConfig(r=model.lora.rank, target_modules=list(model.lora.target_modules))
        add_adapter(transformer, lora, "default")
    adapter = sum(p.numel() for name, p in transformer.named_parameters() if "lora_" in name)
    shrink = 2 ** (len(_json(folder / "vae" / "config.json")["block_out_channels"]) - 1)
    token = shrink * transformer.config.patch_size
    if model.resolution % token:
        raise RequestError(
            f"model.resolution={model.resolution}: expected a multiple of {token} for this model."
        )
    side = model.resolution // token
    used = (file for file in folder.rglob("*.safetensors") if _is_used(file, model))
    frozen = sum(_numbers(file) for file in used) * DTYPES[model.precision].itemsize
    return ModelSize(parameters, adapter, side**2, frozen)


def _is_used(file: Path, model: Model) -> bool:
    """Whether the pipeline loads `file`: no variant such as model.fp16.safetensors, and T5 only where it is asked for."""
    variant = file.name.split("-")[0].count(".") > 1
    return not variant and not (model.max_sequence_length == 0 and file.parent.name == "text_encoder_3")


def _numbers(file: Path) -> int:
    """How many numbers a safetensors file holds, whatever their type, read off its header."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


class SD3Policy:
    """An SD3 pipeline with its LoRA pair; implements `policy.base.Policy`."""

    def __init__(self, pipeline: StableDiffusion3Pipeline, model: Model, device: torch.device, seed: int):
        self.pipeline, self.model, self.device = pipeline, model, device
        self.transformer = pipeline.transformer.eval()
        pipeline.vae.requires_grad_(False).eval()
        for encoder in (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3):
            if encoder is not None:
                encoder.requires_grad_(False).eval()
        self.lora = LoraPair(self.transformer, model.lora, seed)
        side = model.resolution // pipeline.vae_scale_factor
        self.latent_shape = (self.transformer.config.in_channels, side, side)
        self.dtype = DTYPES[model.precision]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> PromptEmbeddings:
        tokens, _, pooled, _ = self.pipeline.encode_prompt(
            prompt=list(prompts),
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.model.max_sequence_length,
        )
        return PromptEmbeddings(tokens, pooled)

    def velocity(self, xt: Tensor, t: Tensor, embeddings: PromptEmbeddings, adapter: Adapter) -> Tensor:
        self.lora.activate(adapter)
        half = self.dtype is not torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=half):
            velocity: Tensor = self.transformer(
                hidden_states=xt.to(self.dtype),
                timestep=t * 1000,
                encoder_hidden_states=embeddings.tokens,
                pooled_projections=embeddings.pooled,
                return_dict=False,
            )[0]
        return velocity.float()

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        vae = self.pipeline.vae
        latents = x0.to(vae.dtype) / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        at_once = max(1, DECODED_PIXELS.get(self.device.type, 2**21) // self.model.resolution**2)
        parts = [vae.decode(part, return_dict=False)[0].float() for part in latents.split(at_once)]
        return ((torch.cat(parts) / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu()

    def scheduler_config(self) -> dict[str, Any]:
        return dict(self.pipeline.scheduler.config)

    def parameters(self, adapter: Literal["trained", "behaviour"]) -> dict[str, torch.nn.Parameter]:
        return self.lora.parameters(adapter)

    def layers(self) -> list[torch.nn.Linear]:
        return self.lora.layers

    def lora_state(self) -> dict[str, Tensor]:
        return self.lora.state()

    def lora_metadata(self) -> dict[str, str]:
        return self.lora.metadata()

    def load_lora(self, state: dict[str, Tensor]) -> None:
        self.lora.load(state)

    def swapped(self, weights: dict[str, Tensor]) -> AbstractContextManager[None]:
        return self.lora.swapped(weights)
