"""Save and restore the global random streams, from which rewards may draw and the run does not."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

WORDS = 624  # of a state of the Mersenne Twister, which numpy and Python use
DRAWN = 100  # states that an import goes through at most, by drawing; httpx's goes through one


@dataclass(frozen=True, eq=False)
class RandomState:
    """The state of the global random streams of torch, its GPUs, numpy and Python; `seed` is torch's."""

    seed: int
    cpu: torch.Tensor
    gpus: tuple[torch.Tensor, ...]
    numpy: Any
    python: Any

    @classmethod
    def read(cls, *, gpus: bool) -> "RandomState":
        """Read the state; of GPUs only if `gpus` and if this process uses some."""
        devices = torch.cuda.get_rng_state_all() if gpus and torch.cuda.is_initialized() else ()
        numpy = np.random.get_state()  # noqa: NPY002 - the global stream is meant
        return cls(torch.initial_seed(), torch.get_rng_state(), tuple(devices), numpy, random.getstate())

    def write(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.gpus:
            torch.cuda.set_rng_state_all(self.gpus)
        np.random.set_state(self.numpy)  # noqa: NPY002
        random.setstate(self.python)

    def moved(self, later: "RandomState") -> list[str]:
        """Name the streams that have another state in `later`."""
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

    def continued(self, later: "RandomState") -> list[str]:
        """Name the streams of numpy and Python whose state in `later` is reached by drawing alone."""
        mine, theirs = ((state.numpy[1:3], _key_and_place(state.python)) for state in (self, later))
        return [
            name
            for name, start, end in zip(("numpy", "Python"), mine, theirs, strict=True)
            if _reaches(start, end)
        ]


def _key_and_place(state: Any) -> tuple[Any, int]:
    """Return what numpy calls key and place of a state of Python's stream."""
    *key, place = state[1]
    return np.array(key, dtype=np.uint32), place


def _reaches(start: tuple[Any, int], end: tuple[Any, int]) -> bool:
    """Tell whether drawing leads from a state of the Mersenne Twister to another."""
    stream = np.random.RandomState(0)
    stream.set_state(("MT19937", *start, 0, 0.0))
    for _ in range(DRAWN):
        state: Any = stream.get_state()
        if np.array_equal(state[1], end[0]):
            return True
        stream.bytes(4 * WORDS)
    return False
