"""Where a model comes from: the embedded one, a folder, or the hub; and which family its pipeline belongs to."""

import importlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from marble_cli.config.schema import Model, Precision
from marble_cli.errors import RequestError
from marble_cli.policy.base import Family

DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}
ASSETS = Path(str(files("marble_cli") / "assets"))
EMBEDDED = ASSETS / "tiny" / "pipeline"
FAMILIES = {  # by the pipeline's class
    "StableDiffusion3Pipeline": "marble_cli.policy.sd3:SD3",
    "FluxPipeline": "marble_cli.policy.flux:Flux",
    "QwenImagePipeline": "marble_cli.policy.qwen_image:QwenImage",
    "SanaPipeline": "marble_cli.policy.sana:Sana",
    "ZImagePipeline": "marble_cli.policy.z_image:ZImage",
}


def local_folder(path: str) -> Path | None:
    """The pipeline's folder on this machine; None if `path` is a hub id. `tiny` is the embedded model.

    Raises:
        RequestError: `path` is a folder's, and no pipeline is in it.
    """
    if path == "tiny":
        return EMBEDDED
    folder = Path(path).expanduser()
    if not path.startswith((".", "/", "~")) and not folder.exists():
        return None
    if not (folder / "model_index.json").is_file():
        raise RequestError(
            f"model.path={path}: no model_index.json there. Expected a folder written by save_pretrained of a "
            "diffusers pipeline, a hub id such as stabilityai/stable-diffusion-3.5-medium, or tiny."
        )
    return folder


def described(path: str) -> Path | None:
    """A folder with the configuration files of `path`, with or without weights; None where nothing is known of it.

    The configurations of some published models come with the package, so that a run on them can be planned without
    fetching anything.
    """
    known = ASSETS / "models" / path.replace("/", "--")
    return local_folder(path) or (known if (known / "model_index.json").is_file() else None)


def find_family(model: Model, index: dict[str, Any]) -> type[Family]:
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


def image_tokens(
    model: Model, family: type[Family], vae: Mapping[str, Any], transformer: Mapping[str, Any]
) -> int:
    """Tokens of an image, by the configurations of the VAE and the transformer.

    Raises:
        RequestError: the resolution is no whole number of them.
    """
    token = family.downscaling(vae, transformer)
    if model.resolution % token:
        raise RequestError(
            f"model.resolution={model.resolution}: expected a multiple of {token} for this model."
        )
    return (model.resolution // token) ** 2


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
