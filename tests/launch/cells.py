"""Sweeps over seeds, whose cells a stand-in for Python runs."""

import shlex
import sys
from pathlib import Path

import pytest

from marble_cli.sweep.cells import PlannedSweep, plan_sweep
from tests.launch import stand_in_cell


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the stand-in run cells, in an empty folder."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\nexec {shlex.join([sys.executable, stand_in_cell.__file__])} "$@"\n')
    python.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(python))


def seeds(*numbers: int, more: tuple[str, ...] = ()) -> PlannedSweep:
    """Plan a sweep over seeds in the folder `s`."""
    swept = f"trainer.seed=choice({','.join(map(str, numbers))})"
    return plan_sweep(["rewards=[colorfulness,compressibility]", swept, "run.dir=s", *more], None)
