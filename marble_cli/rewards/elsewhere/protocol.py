"""What travels between a run and a reward server. Nothing is pickled and nothing is rounded.

    GET  /health          JSON: protocol, marble's version, limits, and each reward's declaration
    POST /score/{name}    safetensors: `images` uint8 [B, 3, H, W] and `text` uint8 [N], which is UTF-8 JSON of
                          {"prompts": [...], "metadata": [...]}; the answer is safetensors: `scores` float64 [B], infinite
                          where the reward failed, and then maybe `reason`, which is UTF-8

Both ask for `Authorization: Bearer TOKEN` where the server has a token. What is refused or fails is answered in JSON,
{"error": {"kind": ..., "message": ...}}, with one of the kinds below.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from marble_cli.errors import ConfigError
from marble_cli.rewards.api import Batch, Declaration

SERVICE = "marble-rewards"
PROTOCOL = 1
TOKEN_VARIABLE = "MARBLE_REWARD_TOKEN"

FAILURE = "failure"  # the plugin raised or did not answer: the lane tries again
CONTRACT = "contract"  # the plugin broke its contract: the run stops
TOO_LARGE = "too large"  # the batch exceeds the server's limits: no use to try again
REFUSED = "refused"  # wrong token, unknown reward, not a batch, too busy


def authorization(token: str, source: str = "the token of a reward server") -> str:
    """Return the header that shows `token`; `source` says where it is from.

    Raises:
        ConfigError: a header cannot hold it.
    """
    if not token.isascii() or not token.isprintable() or token != token.strip():
        raise ConfigError(
            f"{source} must be printable ASCII, with no space at its ends; it is not shown here."
        )
    return f"Bearer {token}"


def pack_batch(batch: Batch) -> bytes:
    """A batch as it travels.

    Raises:
        TypeError: metadata holds something that JSON cannot say.
    """
    text = json.dumps({"prompts": batch.prompts, "metadata": [dict(row) for row in batch.metadata]})
    return save({"images": batch.images.contiguous(), "text": _bytes(text)})


def unpack_batch(data: bytes) -> Batch:
    """The batch that `pack_batch` made.

    Raises:
        ValueError: it is none.
    """
    try:
        tensors = load(data)
        images, text = tensors["images"], json.loads(tensors["text"].numpy().tobytes())
        prompts, metadata = text["prompts"], text["metadata"]
    except Exception as error:  # whatever foreign bytes may cause
        raise ValueError(f"the body is no batch: {type(error).__name__}: {error}") from error
    if images.dtype is not torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images are {images.dtype} {list(images.shape)}. Expected uint8 [B, 3, H, W].")
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError("prompts are no list of strings")
    if not isinstance(metadata, list) or not all(isinstance(row, dict) for row in metadata):
        raise ValueError("metadata is no list of mappings")
    if not len(images) == len(prompts) == len(metadata):
        raise ValueError(f"{len(images)} images, {len(prompts)} prompts and {len(metadata)} rows of metadata")
    return Batch(images, prompts, metadata)


def pack_scores(scores: Tensor, reason: str | None = None) -> bytes:
    """Scores float64 [B] as they travel, NaN and infinity included, and why some failed."""
    return save({"scores": scores} | ({"reason": _bytes(reason)} if reason else {}))


def unpack_scores(data: bytes) -> tuple[Tensor, str | None]:
    """Scores float64 [B], the same bits, and why some failed.

    Raises:
        ValueError: the answer holds none.
    """
    try:
        tensors = load(data)
        reason = tensors["reason"].numpy().tobytes().decode() if "reason" in tensors else None
        return tensors["scores"], reason
    except Exception as error:  # whatever foreign bytes may cause
        raise ValueError(f"the answer holds no scores: {type(error).__name__}: {error}") from error


def declaration_to_json(declaration: Declaration) -> dict[str, Any]:
    return dataclasses.asdict(declaration)


def declaration_from_json(row: Mapping[str, Any]) -> Declaration:
    known = {field.name: row[field.name] for field in dataclasses.fields(Declaration) if field.name in row}
    low, high = known.pop("range", (None, None))
    return Declaration(**{**known, "requires": tuple(known.get("requires", ())), "range": (low, high)})


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
