"""Keep the ranks' weights equal to the last bit, though processors round differently, and check this."""

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
    """Solve the balance on the main rank for its Gram matrix [K, K], and return that solution on all ranks.

    Raises:
        BalanceError: the main rank's; on all ranks.
    """
    if ranks.world == 1:
        return balance(gram)
    answer: dict[str, Any] = {}
    with ranks.raise_together():
        if ranks.is_main:
            try:
                answer = _as_json(balance(gram))
            except BalanceError as error:
                answer = {"error": str(error)}
    answer = ranks.broadcast_json(answer)
    if "error" in answer:
        raise BalanceError(answer["error"])
    tensors: dict[str, Any] = {
        name: torch.tensor(values, dtype=getattr(torch, dtype))
        for name, (dtype, values) in answer["tensors"].items()
    }
    return Solution(**answer["figures"], **tensors)


def _as_json(solution: Solution) -> dict[str, Any]:
    """Convert a solution for JSON, which keeps all digits of a float64."""
    fields = vars(solution)
    tensors: dict[str, Any] = {name: value for name, value in fields.items() if isinstance(value, Tensor)}
    return {
        "figures": {name: value for name, value in fields.items() if name not in tensors},
        "tensors": {
            name: (str(value.dtype).removeprefix("torch."), value.tolist()) for name, value in tensors.items()
        },
    }


def check_alike(parameters: Mapping[str, Tensor], layout: Layout, step: int, written: int | None) -> None:
    """Check that ranks with the same part of the trained weights hold the same bits.

    Args:
        parameters: the trained ones, by name.
        layout: which part of them each rank holds.
        step: the last finished one.
        written: the step of the last checkpoint, if there is one.

    Raises:
        TrainingError: some differ; on all ranks.
    """
    if layout.replicas == 1:
        return
    own = {"host": socket.gethostname(), "part": layout.shard_index, "digest": digest(parameters)}
    rows = layout.ranks.all_gather_json(own)
    if differences := describe_differences(rows):
        earlier = (
            f"the checkpoint of step {written} and those before it are"
            if written
            else "earlier checkpoints are"
        )
        raise TrainingError(
            f"after step {step} the trained weights of {differences}, which have to be the same bits: a "
            "processor, its memory or a library computes differently there. "
            f"Step {step} is not kept; {earlier}. "
            "Use machines with the same hardware and software, and leave out one that differs again. Then "
            "continue the run with --resume auto."
        )


def digest(parameters: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the bits that this rank holds of `parameters`."""
    sha = hashlib.sha256()
    for name, parameter in parameters.items():
        sha.update(name.encode())
        sha.update(local(parameter).detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def describe_differences(rows: list[dict[str, Any]]) -> str:
    """Name the ranks whose digests differ from that of the first rank with the same part; empty if none does.

    Args:
        rows: `host`, `part` and `digest` of every rank, in their order.
    """
    first_of_part: dict[int, int] = {}
    differences = []
    for rank, row in enumerate(rows):
        first = first_of_part.setdefault(row["part"], rank)
        if row["digest"] != rows[first]["digest"]:
            other = f"process {first} on {rows[first]['host']}"
            differences.append(f"process {rank} on {row['host']} differ from those of {other}")
    return ", ".join(differences)
