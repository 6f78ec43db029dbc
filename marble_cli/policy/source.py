"""Where a model comes from: the embedded one, a folder, or the hub; and which family its pipeline belongs to."""

import importlib
import json
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
FAMILIES = {"StableDiffusion3Pipeline": "marble_cli.policy.sd3:SD3"}  # by the pipeline's class


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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
