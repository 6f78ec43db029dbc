"""A sweep that is killed leaves no cell behind; the cell is an interpreter of its own."""

import os
import signal
from pathlib import Path

from tests.distributed.processes import forks, marked, wait_for

SWEEP = """
import sys
from marble_cli.launch.sweep import SignalRelay
with SignalRelay() as relay:
    relay.run([sys.executable, "-c", sys.argv[1], sys.argv[2]])
"""
CELL = """
import pathlib, sys, time
from marble_cli.launch.local import end_with_launcher
end_with_launcher()
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""


def test_a_killed_sweep_ends_its_cell(tmp_path: Path) -> None:
    mark, ready = f"MARBLE_TEST={tmp_path}", tmp_path / "ready"
    environment = os.environ | {"MARBLE_TEST": str(tmp_path)}
    program = tmp_path / "sweep.py"
    program.write_text(SWEEP)
    sweep = forks().start([program, CELL, ready], environment)
    try:
        wait_for(ready.exists, "the cell")
        sweep.kill()
        sweep.wait()
        wait_for(lambda: not marked(mark), "the end of the cell", 10)
    finally:
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)
