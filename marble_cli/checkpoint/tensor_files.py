"""Write safetensors files reproducibly, byte for byte, and check every value when reading them."""

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

SUFFIX = ".safetensors"
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
FORMAT = {"format": "pt"}  # what the Hugging Face libraries expect in every header


def write(file: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write `tensors` with `format: pt` and the strings of `header` in the file's header; flush the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    values = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    save_file(values, file, {**FORMAT, **header})
    file.chmod(_rights_beside(file))  # safetensors lets only the owner read
    if header:
        _sort_header(file)
    fsync(file)


def _rights_beside(file: Path) -> int:
    """Return the rights that a new file in the same folder has by the umask, which cannot be read."""
    fresh = file.with_name(f".{file.name}.new")
    fresh.touch()
    rights = fresh.stat().st_mode
    fresh.unlink()
    return rights


def _sort_header(file: Path) -> None:
    """Sort the strings in a file's header, which safetensors writes in random order."""
    with file.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        content = json.loads(stream.read(size))
        content["__metadata__"] = dict(sorted(content["__metadata__"].items()))
        text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
        stream.seek(8)
        stream.write(text.ljust(size))


def read(
    file: Path, *, floats: bool = True, finite: bool = True, remedy: str = REMEDY
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors of a file and the strings of its header.

    Tensors are mapped from the file: only what is used takes memory, and the system can take that back.

    Args:
        file: a safetensors file.
        floats: whether all tensors must be of a floating type.
        finite: whether to check all values, which reads the whole file.
        remedy: ends the messages of errors.

    Raises:
        CheckpointError: the file is not a safetensors file, a value is not finite, or, with `floats`, a
            tensor is not of a floating type.
    """
    try:
        tensors = load_file(file)
        with safe_open(file, "pt") as content:
            header = content.metadata() or {}
    except (OSError, SafetensorError, KeyError, ValueError) as error:  # KeyError: a type that torch lacks
        raise CheckpointError(f"{file} is not a safetensors file: {error}. {remedy}") from error
    wrong = [name for name, tensor in tensors.items() if tensor.dtype not in FLOATS]
    if floats and wrong:
        raise CheckpointError(f"{file} is damaged: {wrong[0]} is {tensors[wrong[0]].dtype}. {remedy}")
    if finite and (bad := not_finite(tensors)):
        raise CheckpointError(f"{file} is damaged: {bad} has values that are not finite. {remedy}")
    return tensors, header


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor with a value that is not finite, or None."""
    return next((name for name, tensor in tensors.items() if not _is_finite(tensor)), None)


def _is_finite(tensor: Tensor) -> bool:
    """Check all values without a copy of the tensor; a value that is no number is both least and largest."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    return all(bool(end.isfinite()) for end in tensor.aminmax())
