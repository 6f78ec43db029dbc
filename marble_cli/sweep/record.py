"""Record a sweep in its folder: the swept keys, the cells, and why cells failed."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marble_cli import __version__
from marble_cli.config.sweep import Cell
from marble_cli.errors import RequestError
from marble_cli.files import write_whole

NAME = "sweep.json"  # in a sweep's folder


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder, which holds a run's folder per cell.

    Attributes:
        folder: the folder.
        keys: the swept keys.
        cells: the cells, each in the folder of its name.
        failures: why a cell failed when it last ran, by name; cells of a job array are not among them.
    """

    folder: Path
    keys: tuple[str, ...]
    cells: tuple[Cell, ...]
    failures: dict[str, str] = field(default_factory=dict)

    def write(self) -> None:
        """Write the record.

        Raises:
            StorageError: the file cannot be written.
        """
        cells = [
            {"name": cell.name, "values": cell.values, "overrides": cell.overrides}
            | ({"failure": self.failures[cell.name]} if cell.name in self.failures else {})
            for cell in self.cells
        ]
        tree = {"marble": __version__, "keys": self.keys, "cells": cells}
        write_whole(self.folder / NAME, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")


def is_sweep(folder: Path) -> bool:
    """Tell whether a folder is that of a sweep."""
    return (folder / NAME).is_file()


def read_sweep(folder: Path) -> Sweep:
    """Read the record of a sweep.

    Raises:
        RequestError: the file is damaged.
    """
    path = folder / NAME
    try:
        tree: Any = json.loads(path.read_text(encoding="utf-8"))
        cells = [Cell(row["name"], dict(row["values"]), tuple(row["overrides"])) for row in tree["cells"]]
        failures = {row["name"]: str(row["failure"]) for row in tree["cells"] if "failure" in row}
        keys = tuple(map(str, tree["keys"]))
        inside = all(Path(cell.name).name == cell.name for cell in cells)
    except (OSError, ValueError, KeyError, TypeError):
        inside = False
    if not inside:
        raise RequestError(
            f"{path} is not what `marble train --multirun` writes. Expected its keys and cells; restore the "
            "file, or delete it and start the sweep again: finished cells are kept."
        )
    return Sweep(folder, keys, tuple(cells), failures)
