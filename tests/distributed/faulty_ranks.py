"""Run by every rank of test_faulty_ranks.py: `marble train` with a fault on the second rank only.

Arguments: the fault, the step in which it comes, and those of `marble train`. Prints which collectives this
rank began in that step.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from marble_cli.balance.base import Solution
from marble_cli.balance.marble import LeastNorm
from marble_cli.cli.app import main
from marble_cli.run.loop import Trainer
from marble_cli.step.direction import Descent

fault, at = sys.argv[1], int(sys.argv[2])
ill = os.environ["RANK"] == "1"
begun: list[str] = []


def watch(name: str) -> None:
    original = getattr(dist, name)

    def watched(*arguments: Any, **more: Any) -> Any:
        tensor = arguments[0] if isinstance(arguments[0], torch.Tensor) else arguments[1]
        begun.append(f"{name} {tensor.dtype}".replace("torch.", ""))
        return original(*arguments, **more)

    setattr(dist, name, watched)


def direct(
    self: Descent, number: int, signal: Any, data: Any, cache: Any, advance: Callable[[int], None]
) -> Any:
    left = data.times.numel()

    def last_runs_out(count: int) -> None:
        nonlocal left
        left -= count
        if fault == "memory" and ill and number == at and not left:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        advance(count)

    if number == at:
        begun.clear()
    return found(self, number, signal, data, cache, last_runs_out)


def solve(self: LeastNorm, gram: torch.Tensor) -> Solution:
    """Simulate a processor whose rounding changes float32 weights."""
    solution = solved(self, gram)
    return replace(solution, weights=solution.weights * 1.001) if fault == "rounding" and ill else solution


def apply(self: Trainer, gradient: torch.Tensor) -> None:
    applied(self, gradient)
    if fault == "weights" and ill and self.progress.step + 1 == at:
        with torch.no_grad():
            weight = next(iter(self.policy.parameters("trained").values())).view(-1)
            weight[3] = torch.nextafter(weight[3], torch.tensor(9.0))  # flip the last bit of one weight


def run(self: Trainer, *arguments: Any) -> int:
    try:
        return ran(self, *arguments)
    finally:
        print("\n".join(begun), flush=True)


found, solved, applied, ran = Descent.direct, LeastNorm.__call__, Trainer.apply, Trainer.run
Descent.direct, LeastNorm.__call__ = direct, solve  # type: ignore[method-assign]
Trainer.apply, Trainer.run = apply, run  # type: ignore[method-assign]
for name in ("all_reduce", "all_gather", "broadcast"):
    watch(name)
sys.argv = ["marble", "train", *sys.argv[3:]]
main()
