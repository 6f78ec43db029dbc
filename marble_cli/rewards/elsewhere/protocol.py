"""Define the messages between a run and a reward server. Nothing is pickled and nothing is rounded.

    GET  /health          JSON: protocol, marble's version, limits, and each reward's declaration
    POST /score/{name}    request, safetensors: `images` uint8 [B, 3, H, W]; `text` uint8 [N], the JSON
                          {"prompts": [...], "metadata": [...]}; and, if the images were edited from pictures
                          and the reward takes these, `conditions` uint8 [B, 3, H, W]. Where an image was
                          edited from several, `references` uint8 [N] instead: the bytes of all pictures
                          [3, h, w], image after image. The JSON then has "references": [[[h, w], ...], ...].
                          And `frames` uint8 [B, F, 3, H, W] if they are of videos and the reward takes these
                          answer, safetensors: `scores` float64 [B], NaN where the reward does not apply and
                          infinite where it failed; in that case perhaps `reason`, UTF-8, and `reason_of`
                          int64 [1], the image that failed for it. A reward with aspects has these for each of
                          them, such as `scores.style` and `reason.style`

If a request for scores accepts the media type `TURNS`, the answer to a batch that the server takes has that
type and status 200, and begins at once: a line end now and then while the call waits for those of other
callers, and one when its turn has come; then a line with the status, and the answer as above. Silence that is
longer than the timeout is therefore the call's own, or the server hangs.

A request for scores may say in the header `TIMEOUT` how many seconds the call may take, from its turn on. The
server gives it up after them, or after its own timeout if that is longer.

If the server has a token, both require `Authorization: Bearer TOKEN`. A request that is refused or fails is
answered with JSON, {"error": {"kind": ..., "message": ...}}, with one of the kinds below.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from marble_cli.config.aspects import full_name
from marble_cli.errors import ConfigError
from marble_cli.rewards.api import Batch, Declaration

SERVICE = "marble-rewards"
PROTOCOL = 1
TURNS = "application/vnd.marble.turns"
TIMEOUT = "Marble-Timeout"
BEAT = b"\n"  # of a call that waits; no status begins with it
TOKEN_VARIABLE = "MARBLE_REWARD_TOKEN"

FAILURE = "failure"  # the plugin raised or did not answer: the worker retries
CONTRACT = "contract"  # the plugin broke its contract: the run stops
TOO_LARGE = "too large"  # the batch exceeds the server's limits: retrying is useless
REFUSED = "refused"  # wrong token, unknown reward, not a batch, too busy


def authorization(token: str, source: str = "the token of a reward server") -> str:
    """Return the value of the Authorization header for `token`.

    Args:
        token: the secret.
        source: where the token is from, for the message.

    Raises:
        ConfigError: the token cannot be in a header.
    """
    if not token.isascii() or not token.isprintable() or token != token.strip():
        raise ConfigError(
            f"{source} must be printable ASCII, with no space at its ends; it is not shown here."
        )
    return f"Bearer {token}"


def pack_batch(batch: Batch) -> bytes:
    """Serialise a batch.

    Raises:
        TypeError: metadata has a value that JSON does not support.
    """
    text: dict[str, Any] = {"prompts": batch.prompts, "metadata": [dict(row) for row in batch.metadata]}
    tensors = {"images": batch.images.contiguous()}
    if batch.single is not None:
        tensors["conditions"] = batch.single.contiguous()
    if batch.several is not None:
        text["references"] = [[list(picture.shape[1:]) for picture in own] for own in batch.several]
        tensors["references"] = torch.cat([picture.flatten() for own in batch.several for picture in own])
    if batch.frames is not None:
        tensors["frames"] = batch.frames.contiguous()
    return save({**tensors, "text": _bytes(json.dumps(text))})


def unpack_batch(data: bytes) -> Batch:
    """Restore a batch from `pack_batch`.

    Raises:
        ValueError: the bytes are no batch.
    """
    try:
        tensors = load(data)
        images, text = tensors["images"], json.loads(tensors["text"].numpy().tobytes())
        prompts, metadata = text["prompts"], text["metadata"]
    except Exception as error:  # foreign bytes may cause anything
        raise ValueError(f"the body is no batch: {type(error).__name__}: {error}") from error
    if images.dtype is not torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images are {images.dtype} {list(images.shape)}. Expected uint8 [B, 3, H, W].")
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError("prompts are no list of strings")
    if not isinstance(metadata, list) or not all(isinstance(row, dict) for row in metadata):
        raise ValueError("metadata is no list of mappings")
    if not len(images) == len(prompts) == len(metadata):
        raise ValueError(f"{len(images)} images, {len(prompts)} prompts and {len(metadata)} rows of metadata")
    conditions = tensors.get("conditions")
    if conditions is not None and (conditions.dtype, conditions.shape) != (images.dtype, images.shape):
        raise ValueError(
            f"conditions are {conditions.dtype} {list(conditions.shape)}. Expected the images': uint8 "
            f"{list(images.shape)}."
        )
    frames = tensors.get("frames")
    if frames is not None and (
        frames.dtype is not torch.uint8
        or frames.ndim != 5
        or not frames.shape[1]
        or (len(frames), *frames.shape[2:]) != images.shape
    ):
        raise ValueError(
            f"frames are {frames.dtype} {list(frames.shape)}. Expected uint8 [B, F, 3, H, W] of images "
            f"{list(images.shape)}."
        )
    references = _unpack_references(tensors, text, images) if "references" in tensors else None
    return Batch(images, prompts, metadata, conditions, frames, references)


def _unpack_references(
    tensors: Mapping[str, Tensor], text: Mapping[str, Any], images: Tensor
) -> list[list[Tensor]]:
    """Restore the pictures that each image was edited from."""
    pixels = tensors["references"]
    try:
        sizes = [[(int(height), int(width)) for height, width in own] for own in text["references"]]
        counts = [3 * height * width for own in sizes for height, width in own]
        parts = iter(pixels.split(counts))
        rows = [[next(parts).view(3, *size) for size in own] for own in sizes]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the sizes of references do not fit their bytes: {error}") from error
    alone = [own[0] for own in rows if len(own) == 1]
    if pixels.dtype is not torch.uint8 or len(rows) != len(images) or not all(rows):
        raise ValueError("references are no bytes of at least one picture for each image")
    if any(picture.shape != images.shape[1:] for picture in alone):
        raise ValueError("the single reference of an image has not the image's size")
    return rows


Part = tuple[Tensor, dict[int, str]]  # scores float64 [B], with NaN and infinity; why images failed, by index


def pack_scores(parts: Mapping[str, Part]) -> bytes:
    """Serialise the scores of each aspect, and the reason of the first image that failed with one.

    The empty name is the single score of a reward without aspects.
    """
    tensors = {}
    for aspect, (scores, reasons) in parts.items():
        tensors[full_name("scores", aspect)] = scores
        if reasons:
            tensors[full_name("reason", aspect)] = _bytes(reasons[min(reasons)])
            tensors[full_name("reason_of", aspect)] = torch.tensor([min(reasons)])
    return save(tensors)


def unpack_scores(data: bytes) -> dict[str, Part]:
    """Restore what `pack_scores` serialised, bit by bit.

    Raises:
        ValueError: the bytes hold no scores.
    """
    try:
        tensors = load(data)
        aspects = [name.partition(".")[2] for name in tensors if name.partition(".")[0] == "scores"]
        if not aspects:
            raise KeyError("scores")
        return {
            aspect: (scores := tensors[full_name("scores", aspect)], _unpack_reason(tensors, aspect, scores))
            for aspect in aspects
        }
    except Exception as error:  # foreign bytes may cause anything
        raise ValueError(f"the answer holds no scores: {type(error).__name__}: {error}") from error


def _unpack_reason(tensors: Mapping[str, Tensor], aspect: str, scores: Tensor) -> dict[int, str]:
    reason = tensors.get(full_name("reason", aspect))
    if reason is None:
        return {}
    # A server of marble 0.1.0 does not say of which image it is.
    images = tensors.get(full_name("reason_of", aspect), scores.isinf().nonzero())
    return dict.fromkeys(images.flatten().tolist(), reason.numpy().tobytes().decode())


def pack_answer(status: int, body: bytes) -> bytes:
    """Return the end of an answer of the type `TURNS`."""
    return b"%d\n" % status + body


def unpack_answer(data: bytes) -> tuple[int, bytes]:
    """Restore what `pack_answer` packed.

    Raises:
        ValueError: the bytes hold no answer.
    """
    status, _, body = data.partition(b"\n")
    return int(status), body


def declaration_to_json(declaration: Declaration) -> dict[str, Any]:
    """Return a declaration as a JSON object."""
    return dataclasses.asdict(declaration)


def declaration_from_json(row: Mapping[str, Any]) -> Declaration:
    """Restore a declaration; keys that another version of marble adds or lacks are ignored."""
    known = {field.name: row[field.name] for field in dataclasses.fields(Declaration) if field.name in row}
    low, high = known.pop("range", (None, None))
    for key in ("requires", "aspects"):
        known[key] = tuple(known.get(key, ()))
    ranges = {aspect: tuple(bounds) for aspect, bounds in known.pop("ranges", {}).items()}
    return Declaration(**known, range=(low, high), ranges=ranges)


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode(errors="backslashreplace")), dtype=torch.uint8)
