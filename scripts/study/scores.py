"""Files of the study: where cells are kept, and the scores of each."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.study.cells import BASE, Cell


@dataclass(frozen=True)
class Folders:
    """Where cells are kept: `runs` with checkpoints, which can be made again, and the `results`."""

    runs: Path
    results: Path

    def result(self, name: str) -> Path:
        """File of a cell's scores."""
        return self.results / f"{name}.npz"

    def has(self, cell: Cell) -> bool:
        """Tell whether a cell and the base model with its noise are scored."""
        return all(self.result(name).is_file() for name in (cell.name, base_name(cell.seed)))


@dataclass(frozen=True)
class Scores:
    """Scores of a cell.

    Attributes:
        values: [K, n] float32 of the rewards and prompts; NaN where a reward does not apply.
        facts: how the run went (`conduct`), and the overrides that made it.
    """

    values: np.ndarray
    facts: dict[str, Any]

    def write(self, file: Path) -> None:
        """Write the scores, whole or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial.npz")
        np.savez_compressed(partial, values=self.values, facts=np.array(json.dumps(self.facts)))
        partial.rename(file)

    @classmethod
    def read(cls, file: Path) -> "Scores":
        """Read the scores that `write` wrote."""
        with np.load(file, allow_pickle=False) as arrays:
            return cls(arrays["values"], json.loads(str(arrays["facts"])))


def base_name(seed: int) -> str:
    """Name of the base model's cell with the noise of a seed."""
    return f"{BASE}-{seed}"
