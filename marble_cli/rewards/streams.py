"""The global streams of random numbers, which rewards may draw from and the run does not."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True, eq=False)
class RandomState:
    """Where the global streams of torch, its GPUs, numpy and Python are; `seed` is torch's."""

    seed: int
    cpu: torch.Tensor
    gpus: tuple[torch.Tensor, ...]
    numpy: Any
    python: Any

    @classmethod
    def read(cls, *, gpus: bool) -> "RandomState":
        """Note where they are; on GPUs only if asked to, and if GPUs are in use."""
        devices = torch.cuda.get_rng_state_all() if gpus and torch.cuda.is_initialized() else ()
        numpy = np.random.get_state()  # noqa: NPY002 - that stream is meant
        return cls(torch.initial_seed(), torch.get_rng_state(), tuple(devices), numpy, random.getstate())

    def write(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.gpus:
            torch.cuda.set_rng_state_all(self.gpus)
        np.random.set_state(self.numpy)  # noqa: NPY002
        random.setstate(self.python)

    def moved(self, later: "RandomState") -> list[str]:
        """Name the streams that are elsewhere in `later`."""
        mine, theirs = (*self.gpus, self.cpu), (*later.gpus, later.cpu)
        return [
            name
            for name, same in (
                ("torch", len(mine) == len(theirs) and all(map(torch.equal, mine, theirs))),
                (
                    "numpy",
                    repr(self.numpy[2:]) == repr(later.numpy[2:])
                    and np.array_equal(self.numpy[1], later.numpy[1]),
                ),
                ("Python", self.python == later.python),
            )
            if not same
        ]
