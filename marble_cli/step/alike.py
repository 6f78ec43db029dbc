"""Keep the ranks' weights alike to the last bit, though processors round differently, and check that."""

import hashlib
import socket
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from marble_cli.balance.base import Balance, Solution
from marble_cli.distributed.layout import Layout
from marble_cli.distributed.ranks import Ranks
from marble_cli.distributed.shards import local
from marble_cli.errors import BalanceError, TrainingError


def solve_once(balance: Balance, gram: Tensor, ranks: Ranks) -> Solution:
    """The main rank's solution for its Gram matrix [K, K], on all ranks.

    Raises:
        BalanceError: the main rank's; on all ranks.
    """
    if ranks.world == 1:
        return balance(gram)
    told: dict[str, Any] = {}
    with ranks.raise_together():
        if ranks.is_main:
            try:
                told = _plain(balance(gram))
            except BalanceError as error:
                told = {"error": str(error)}
    told = ranks.broadcast_json(told)
    if "error" in told:
        raise BalanceError(told["error"])
    tensors: dict[str, Any] = {
        name: torch.tensor(values, dtype=getattr(torch, dtype))
        for name, (dtype, values) in told["tensors"].items()
    }
    return Solution(**told["figures"], **tensors)


def _plain(solution: Solution) -> dict[str, Any]:
    """For JSON, which keeps all digits of a float64."""
    fields = vars(solution)
    tensors: dict[str, Any] = {name: value for name, value in fields.items() if isinstance(value, Tensor)}
    return {
        "figures": {name: value for name, value in fields.items() if name not in tensors},
        "tensors": {
            name: (str(value.dtype).removeprefix("torch."), value.tolist()) for name, value in tensors.items()
        },
    }


def check_alike(parameters: Mapping[str, Tensor], layout: Layout, step: int, written: int | None) -> None:
    """Ranks that hold the same part of the trained weights hold the same bits.

    Args:
        parameters: the trained ones, by name.
        layout: which part of them each rank holds.
        step: the last finished one.
        written: the step of the last checkpoint, if there is one.

    Raises:
        TrainingError: some do not; on all ranks.
    """
    if layout.replicas == 1:
        return
    own = {"host": socket.gethostname(), "part": layout.shard_index, "digest": digest(parameters)}
    seen = layout.ranks.all_gather_json(own)
    if others := apart(seen):
        last = (
            f"the checkpoint of step {written} and those before it are"
            if written
            else "earlier checkpoints are"
        )
        raise TrainingError(
            f"after step {step} the trained weights of {others}, which have to be the same bits: a "
            f"processor, its memory or a library computes differently there. Step {step} is not kept; {last}. "
            "Take machines with the same hardware and software, and leave out one that differs again; the run "
            "then goes on with --resume auto."
        )


def digest(parameters: Mapping[str, Tensor]) -> str:
    """SHA-256 of the bits that this rank holds of `parameters`."""
    sha = hashlib.sha256()
    for name, parameter in parameters.items():
        sha.update(name.encode())
        sha.update(local(parameter).detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def apart(seen: list[dict[str, Any]]) -> str:
    """Which ranks' digests differ from that of the first rank with the same part, in words; empty if none.

    Args:
        seen: `host`, `part` and `digest` of every rank, in their order.
    """
    first: dict[int, int] = {}
    found = []
    for rank, row in enumerate(seen):
        start = first.setdefault(row["part"], rank)
        if row["digest"] != seen[start]["digest"]:
            other = f"process {start} on {seen[start]['host']}"
            found.append(f"process {rank} on {row['host']} differ from those of {other}")
    return ", ".join(found)
