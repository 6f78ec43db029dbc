"""Safetensors files: written so that equal content is equal bytes, read with every value checked."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from marble_cli.checkpoint.manifest import REMEDY
from marble_cli.errors import CheckpointError
from marble_cli.files import fsync

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
FORMAT = {"format": "pt"}  # what the Hugging Face libraries expect in every header


def write(file: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write `tensors`, and in the file's header `format: pt` and the strings of `header`; flush the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    values = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    save_file(values, file, {**FORMAT, **header})
    if header:
        _sort_header(file)
    fsync(file)


def _sort_header(file: Path) -> None:
    """Put the strings of a file's header in order: safetensors writes several in random order."""
    with file.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        content = json.loads(stream.read(size))
        content["__metadata__"] = dict(sorted(content["__metadata__"].items()))
        text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
        stream.seek(8)
        stream.write(text.ljust(size))


def read(file: Path, *, floats: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors of a file, all of them finite and, with `floats`, of a floating type, and its header's strings.

    Raises:
        CheckpointError: they are not, or the file holds something else.
    """
    try:
        tensors = load_file(file)
        with safe_open(file, "pt") as content:
            header = content.metadata() or {}
    except (OSError, SafetensorError, KeyError, ValueError) as error:  # KeyError: a type that torch has not
        raise CheckpointError(f"{file} is no safetensors file: {error}. {REMEDY}") from error
    strange = [name for name, tensor in tensors.items() if tensor.dtype not in FLOATS]
    if floats and strange:
        raise CheckpointError(f"{file} is of no use: {strange[0]} is {tensors[strange[0]].dtype}. {REMEDY}")
    if bad := not_finite(tensors):
        raise CheckpointError(f"{file} is of no use: {bad} has values that are not finite. {REMEDY}")
    return tensors, header


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of a tensor with a value that is not finite, if there is one."""
    return next((name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())), None)
