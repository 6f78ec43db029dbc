"""Where a model comes from: the embedded one, a folder, or the hub; and which family its pipeline belongs to."""

import importlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from marble_cli.config.schema import ModelConfig, Precision
from marble_cli.errors import ConfigError, RequestError
from marble_cli.policy.base import Family

log = logging.getLogger("marble.run")

DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}
BROKEN = (  # what diffusers and transformers raise on files that are damaged or do not belong together
    OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError, SafetensorError,
)  # fmt: skip
ASSETS = Path(str(files("marble_cli") / "assets"))
EMBEDDED = ASSETS / "tiny" / "pipeline"
FAMILIES = {  # by the pipeline's class
    "StableDiffusion3Pipeline": "marble_cli.policy.families.sd3:SD3",
    "FluxPipeline": "marble_cli.policy.families.flux:Flux",
    "QwenImagePipeline": "marble_cli.policy.families.qwen_image:QwenImage",
    "SanaPipeline": "marble_cli.policy.families.sana:Sana",
    "ZImagePipeline": "marble_cli.policy.families.z_image:ZImage",
}


def local_folder(path: str) -> Path | None:
    """The pipeline's folder on this machine; None if `path` is a hub id. `tiny` is the embedded model.

    Raises:
        RequestError: `path` is a folder's, and no pipeline is in it.
    """
    if path == "tiny":
        return EMBEDDED
    folder = Path(path)
    if not path.startswith((".", "/")) and not folder.exists():
        return None
    if not (folder / "model_index.json").is_file():
        raise RequestError(
            f"model.path={path}: no model_index.json there. Expected a folder written by save_pretrained of a "
            "diffusers pipeline, a hub id such as stabilityai/stable-diffusion-3.5-medium, or tiny."
        )
    return folder


def tell_revision(model: ModelConfig) -> None:
    """Say so if a folder is asked for a revision, which only the hub has."""
    if model.revision is not None and local_folder(model.path) is not None:
        log.warning("model.revision=%s has no effect: model.path=%s is a folder", model.revision, model.path)


def described(path: str) -> Path | None:
    """A folder with the configuration files of `path`, with or without weights; None where nothing is known of it.

    The configurations of some published models come with the package, so that a run on them can be planned without
    fetching anything.
    """
    known = ASSETS / "models" / path.replace("/", "--")
    return local_folder(path) or (known if (known / "model_index.json").is_file() else None)


def find_family(model: ModelConfig, index: dict[str, Any]) -> type[Family]:
    """The family of a pipeline by its model_index.json.

    Raises:
        RequestError: there is none for its class.
    """
    name = str(index.get("_class_name"))
    if name not in FAMILIES:
        raise RequestError(
            f"model.path={model.path} is a {name}, which marble cannot train. Expected one of: {', '.join(FAMILIES)}."
        )
    module, _, attribute = FAMILIES[name].partition(":")
    family: type[Family] = getattr(importlib.import_module(module), attribute)
    return family


def networks(
    model: ModelConfig, family: type[Family], index: Mapping[str, Any]
) -> dict[str, tuple[str, str]]:
    """Library and class of every network that the pipeline is loaded with, by its folder's name."""
    return {
        name: (kind[0], kind[1])
        for name, kind in index.items()
        if name.startswith(("transformer", "vae", "text_encoder"))
        and name not in family.left_out(model)
        and kind[0] is not None
    }


def image_tokens(
    model: ModelConfig, family: type[Family], vae: Mapping[str, Any], transformer: Mapping[str, Any]
) -> int:
    """Tokens of an image, by the configurations of the VAE and the transformer.

    Raises:
        RequestError: the resolution is no whole number of them, or more than the transformer has positions for.
    """
    token = family.downscaling(vae, transformer)
    if model.resolution % token:
        raise RequestError(
            f"model.resolution={model.resolution}: expected a multiple of {token} for this model."
        )
    most = transformer.get("pos_embed_max_size")
    if most is not None and model.resolution > most * token:
        raise RequestError(
            f"model.resolution={model.resolution}: expected at most {most * token} for this model."
        )
    return (model.resolution // token) ** 2


def check_fit(model: ModelConfig, family: type[Family], transformer: Mapping[str, Any]) -> None:
    """Guidance, precision and length of prompts are such as the model can have.

    Raises:
        ConfigError: one is not. Models into which guidance was distilled take it as an input, and they alone.
    """
    distilled = transformer.get("guidance_embeds", False)
    if distilled and model.guidance is None:
        raise ConfigError(
            f"model.guidance=null: {model.path} takes a guidance. Expected a number such as 3.5."
        )
    if not distilled and model.guidance is not None:
        raise ConfigError(f"model.guidance={model.guidance}: {model.path} takes none. Expected null.")
    if model.precision is Precision.fp16 and not family.float16:
        raise ConfigError(f"model.precision=fp16: {model.path} overflows in it. Expected bf16 or fp32.")
    if model.max_sequence_length == 0 and not family.left_out(model):
        raise ConfigError(
            f"model.max_sequence_length=0: {model.path} has no other text encoder. Expected at least 1."
        )


@contextmanager
def reading(model: ModelConfig) -> Iterator[None]:
    """The model's files are read inside.

    Raises:
        RequestError: they are damaged, or no pipeline's, or cannot be reached.
    """
    try:
        yield
    except BROKEN as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error).strip().split("\n")[0]
        raise RequestError(
            f"model.path={model.path} could not be loaded: {reason.rstrip('. ')}. "
            "Expected the folder of a diffusers pipeline, a reachable hub id, or tiny."
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ValueError: it holds none.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content
