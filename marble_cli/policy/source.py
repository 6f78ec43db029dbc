"""Locate a model (the embedded one, a folder, or the hub) and find its pipeline's family."""

import importlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError

from marble_cli.config.embedded import WORLDS
from marble_cli.config.enums import Precision
from marble_cli.config.resolution import read_resolution
from marble_cli.config.schema import ModelConfig
from marble_cli.errors import ConfigError, RequestError
from marble_cli.policy.base import Family
from marble_cli.policy.video import as_video

log = logging.getLogger("marble.run")

DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}
# What diffusers and transformers raise on files that are damaged or do not belong together.
LOAD_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    ImportError,
    RuntimeError,
    SafetensorError,
)
ASSETS = Path(str(files("marble_cli") / "assets"))
EMBEDDED = ASSETS / "tiny" / "pipeline"
FAMILIES = {  # by the pipeline's class
    "StableDiffusion3Pipeline": "marble_cli.policy.families.sd3:SD3",
    "FluxPipeline": "marble_cli.policy.families.flux:Flux",
    "FluxKontextPipeline": "marble_cli.policy.families.flux_kontext:FluxKontext",
    "Flux2Pipeline": "marble_cli.policy.families.flux2:Flux2",
    "Flux2KleinPipeline": "marble_cli.policy.families.flux2:Flux2Klein",
    "QwenImagePipeline": "marble_cli.policy.families.qwen_image:QwenImage",
    "QwenImageEditPipeline": "marble_cli.policy.families.qwen_image_edit:QwenImageEdit",
    "QwenImageEditPlusPipeline": "marble_cli.policy.families.qwen_image_edit:QwenImageEditPlus",
    "SanaPipeline": "marble_cli.policy.families.sana:Sana",
    "ZImagePipeline": "marble_cli.policy.families.z_image:ZImage",
    "ChromaPipeline": "marble_cli.policy.families.chroma:Chroma",
    "Lumina2Pipeline": "marble_cli.policy.families.lumina2:Lumina2",
    "StableDiffusionXLPipeline": "marble_cli.policy.families.sdxl:SDXL",
    "StableDiffusionPipeline": "marble_cli.policy.families.sd15:SD15",
    "WanPipeline": "marble_cli.policy.families.wan:Wan",
}


def local_folder(path: str) -> Path | None:
    """Return the pipeline's folder on this machine; None if `path` is a hub id.

    Raises:
        RequestError: `path` names a folder that holds no pipeline.
    """
    if path in WORLDS:
        return ASSETS / path / "pipeline"
    folder = Path(path)
    if not path.startswith((".", "/")) and not folder.exists():
        return None
    if not (folder / "model_index.json").is_file():
        raise RequestError(
            f"model.path={path}: no model_index.json there. Expected a folder written by save_pretrained of "
            "a diffusers pipeline, a hub id such as stabilityai/stable-diffusion-3.5-medium, or tiny."
        )
    return folder


def model_file(model: ModelConfig, name: str) -> Path:
    """Return a file of the pipeline, fetched if the model is on the hub."""
    folder = local_folder(model.path)
    if folder is not None:
        return folder / name
    return Path(hf_hub_download(model.path, name, revision=model.revision))


def warn_unused_revision(model: ModelConfig) -> None:
    """Warn if `model.revision` is set for a folder; only models on the hub have revisions."""
    if model.revision is not None and local_folder(model.path) is not None:
        log.warning("model.revision=%s has no effect: model.path=%s is a folder", model.revision, model.path)


def config_folder(path: str) -> Path | None:
    """Return a folder with the configuration files of the model `path`; None if this machine has none.

    The package includes the configurations of some published models, so that a run on them can be planned
    without fetching anything. Such a folder has no weights.
    """
    known = ASSETS / "models" / path.replace("/", "--")
    return local_folder(path) or (known if (known / "model_index.json").is_file() else None)


def find_family(model: ModelConfig, index: dict[str, Any]) -> type[Family]:
    """Return the family of a pipeline from its model_index.json.

    Raises:
        RequestError: no family supports the pipeline's class, or it has two transformers.
    """
    name = str(index.get("_class_name"))
    if name not in FAMILIES:
        raise RequestError(
            f"model.path={model.path} is a {name}, which marble cannot train. "
            f"Expected one of: {', '.join(FAMILIES)}."
        )
    if (index.get("transformer_2") or [None])[0] is not None:
        raise RequestError(
            f"model.path={model.path} has two transformers, for early and for late times, and marble trains "
            "one. Expected a model with one, such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers or "
            "Wan-AI/Wan2.2-TI2V-5B-Diffusers."
        )
    module, _, attribute = FAMILIES[name].partition(":")
    family: type[Family] = getattr(importlib.import_module(module), attribute)
    return family


def starts_from_picture(model: ModelConfig, *, fetch: bool) -> bool | None:
    """Tell whether a model edits pictures; None if it also draws from texts alone.

    None also if no file on this machine says so and `fetch` is false.

    Raises:
        RequestError: it is no pipeline of a supported family, or cannot be reached.
    """
    folder = config_folder(model.path)
    if folder is None and not fetch:
        return None
    with explain_load_errors(model):
        index = folder / "model_index.json" if folder else model_file(model, "model_index.json")
        family: Any = find_family(model, read_json(index))
        takes: bool = family.conditions
        return None if takes and family.optional else takes


def list_networks(
    model: ModelConfig, family: type[Family], index: Mapping[str, Any]
) -> dict[str, tuple[str, str]]:
    """Return (library, class) of every network that is loaded, by the network's folder name."""
    return {
        name: (kind[0], kind[1])
        for name, kind in index.items()
        if name.startswith((family.network, "vae", "text_encoder"))
        and name not in family.left_out(model)
        and kind[0] is not None
    }


def count_image_tokens(
    model: ModelConfig,
    family: type[Family],
    vae: Mapping[str, Any],
    network: Mapping[str, Any],
    key: str = "model.resolution",
) -> int:
    """Count the tokens of an image or a video from the configurations of the VAE and the network.

    `key` is where the resolution was set, for messages.

    Raises:
        RequestError: the resolution is not a multiple of a token's side, or exceeds the network's
            positions; or the frames do not fit the VAE.
    """
    token, size = family.downscaling(vae, network), read_resolution(model.resolution)
    each = "" if size.width == size.height else "each side "
    if size.width % token or size.height % token:
        raise RequestError(f"{key}={model.resolution}: expected {each}a multiple of {token} for this model.")
    most = network.get("pos_embed_max_size")
    if most is not None and max(size.width, size.height) > most * token:
        raise RequestError(f"{key}={model.resolution}: expected {each}at most {most * token} for this model.")
    return size.pixels // token**2 * _count_latent_frames(model, family, vae)


def _count_latent_frames(model: ModelConfig, family: type[Family], vae: Mapping[str, Any]) -> int:
    video, frames = as_video(family), model.frames or 1
    if video is None:
        return 1
    whole, rest = divmod(frames - 1, video.frames_per_latent(vae))
    if rest:
        each = video.frames_per_latent(vae)
        raise RequestError(
            f"model.frames={frames}: expected 1 more than a multiple of {each} for this model, such as "
            f"{whole * each + 1} or {(whole + 1) * each + 1}."
        )
    return whole + 1


def check_model_settings(model: ModelConfig, family: type[Family], network: Mapping[str, Any]) -> None:
    """Check that the model supports the configured guidance, precision, prompt length and frames.

    Only models with distilled guidance take guidance as an input, and they need it.

    Raises:
        ConfigError: the model does not support one of them.
    """
    distilled = network.get("guidance_embeds", False)
    if distilled and model.guidance is None:
        raise ConfigError(
            f"model.guidance=null: {model.path} takes a guidance. Expected a number such as 3.5."
        )
    if not distilled and model.guidance is not None:
        raise ConfigError(f"model.guidance={model.guidance}: {model.path} takes none. Expected null.")
    if as_video(family) and model.frames is None:
        raise ConfigError(f"model.frames=null: {model.path} draws videos. Expected a number such as 81.")
    if not as_video(family) and model.frames is not None:
        raise ConfigError(f"model.frames={model.frames}: {model.path} draws pictures. Expected null.")
    if model.precision is Precision.fp16 and not family.float16:
        raise ConfigError(f"model.precision=fp16: {model.path} overflows in it. Expected bf16 or fp32.")
    if model.max_sequence_length > 0 and family.text == "clip":
        raise ConfigError(
            f"model.max_sequence_length={model.max_sequence_length}: {model.path} has no other text encoder "
            "than CLIP, which takes 77 tokens. Expected 0."
        )
    if model.max_sequence_length == 0 and family.text == "long":
        raise ConfigError(
            f"model.max_sequence_length=0: {model.path} has no other text encoder. Expected at least 1."
        )
    positions, *_ = network.get("axes_lens") or [None]
    if positions is not None and model.max_sequence_length >= positions:
        raise ConfigError(
            f"model.max_sequence_length={model.max_sequence_length}: {model.path} has {positions} positions. "
            f"Expected at most {positions - 1}."
        )


@contextmanager
def explain_load_errors(model: ModelConfig) -> Iterator[None]:
    """Re-raise errors of the libraries that read a model's files as a RequestError that names `model.path`.

    Raises:
        RequestError: the files are damaged, are not a pipeline's, or cannot be reached.
    """
    try:
        yield
    except LOAD_ERRORS as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error).strip().split("\n")[0]
        raise RequestError(
            f"model.path={model.path} could not be loaded: {reason.rstrip('. ')}. "
            "Expected the folder of a diffusers pipeline, a reachable hub id, or tiny."
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        ValueError: the file holds no JSON object.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content
