"""Find and read the weights of other programs: a LoRA's file or folder, a transformer's folder, a hub id."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from marble_cli.checkpoint import store, tensor_files
from marble_cli.checkpoint.export import LORA_FILES, PEFT_CONFIG
from marble_cli.checkpoint.formats import ExportFormat
from marble_cli.checkpoint.lora import NETWORKS
from marble_cli.checkpoint.pickle_guard import refuse_pickled
from marble_cli.checkpoint.tensor_files import SUFFIX
from marble_cli.errors import CheckpointError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)
TRANSFORMER = store.WEIGHTS["full"]
AGAIN = "Copy or fetch it again."


@dataclass(frozen=True)
class Weights:
    """The weights of a LoRA or a whole transformer, as another program wrote them.

    Attributes:
        path: the file, or the folder of a transformer.
        tensors: by the names in the file.
        header: the strings in the file's header.
        config: the content of adapter_config.json or of the transformer's config.json, if there is one.
        train: lora or full, as `model.train`.
    """

    path: Path
    tensors: dict[str, Tensor]
    header: Mapping[str, str]
    config: Mapping[str, Any] | None
    train: str


def find_weights(spec: str, path: Path) -> Path | None:
    """Return the file of a LoRA or the folder of a transformer that `spec` names; None if there is none.

    Args:
        spec: as the user wrote it: a path, or a hub id with an optional `@REVISION`, which is fetched.
        path: the same, as a path.

    Raises:
        CheckpointError: the hub cannot be reached or has no such repository, or a folder holds several LoRAs.
    """
    if path.is_file():
        return path if path.suffix == SUFFIX else None
    if not path.exists() and HUB_ID.fullmatch(spec) and not path.parent.exists():
        path = _fetch(spec)
    if not path.is_dir():
        return None
    for folder in (path, *(path / name for name in NETWORKS)):
        if any(folder.glob(f"{Path(TRANSFORMER).stem}*{SUFFIX}")):
            return folder
    for name in LORA_FILES.values():
        if (path / name).is_file():
            return path / name
    files = sorted(path.glob(f"*{SUFFIX}"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise CheckpointError(f"{spec} holds several files of weights: {names}. Expected one of these files.")
    return files[0] if files else None


def _fetch(spec: str) -> Path:
    """Fetch the weights and configurations at the top of a repository of the hub; return their folder."""
    name, _, revision = spec.partition("@")
    wanted = [f"*{SUFFIX}", "*.json"]
    try:
        return Path(
            snapshot_download(name, revision=revision or None, allow_patterns=wanted, ignore_patterns=["*/*"])
        )
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0].removeprefix("Got: ")
        raise CheckpointError(
            f"{spec} is no path here, and as a hub id it cannot be read: {reason.rstrip('.')}. Expected a "
            "checkpoint, a run, base, or the folder, .safetensors file or reachable hub id of a LoRA."
        ) from error


def read_weights(path: Path) -> Weights:
    """Read what `find_weights` found.

    Raises:
        CheckpointError: a file is missing, damaged, not finite, or pickled.
    """
    if path.is_dir():
        tensors = dict[str, Tensor]()
        for file in _parts(path):
            tensors |= tensor_files.read(file, remedy=AGAIN)[0]
        return Weights(path, tensors, {}, _read_config(path / "config.json"), "full")
    tensors, header = tensor_files.read(path, remedy=AGAIN)
    beside = path.with_name(PEFT_CONFIG)
    of_peft = path.name == LORA_FILES[ExportFormat.peft] and beside.is_file()
    config = _read_config(beside) if of_peft else None
    return Weights(path, tensors, header, config, "lora")


def _parts(folder: Path) -> list[Path]:
    """Return the files of a transformer's weights, which may be one or several."""
    whole, index = folder / TRANSFORMER, folder / f"{TRANSFORMER}.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        refuse_pickled(folder)
        found = next(folder.glob(f"*{SUFFIX}")).name
        raise CheckpointError(f"{folder} holds {found} alone. Expected {TRANSFORMER}.")
    parts = _read_config(index).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
        raise CheckpointError(f"{index} has no weight_map of file names. {AGAIN}")
    return [folder / Path(part).name for part in sorted(set(parts.values()))]


def _read_config(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}. {AGAIN}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds no JSON object. {AGAIN}")
    return content
