"""W&B cannot be reached during a whole run and its continuation."""

import os
import signal
import subprocess
import sys

import pytest

from marble_cli.metrics.wandb_history import list_unsent_starts
from tests.faults.conftest import SETTINGS, FaultRecorder, JobMaker
from tests.faults.job import check_identical

pytestmark = pytest.mark.long


def test_run_that_never_reaches_wandb_keeps_its_metrics_for_sync(
    job: JobMaker, undisturbed: JobMaker, record_fault: FaultRecorder
) -> None:
    nowhere = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    run = job(*SETTINGS, "logging.wandb.mode=online", environ=nowhere)
    process = run.start()
    run.wait(process, lambda: run.step() >= 20)
    os.kill(process.pid, signal.SIGTERM)
    run.end(process, 143)
    run.finish()
    assert run.said().count(f"metrics are kept for `marble sync {run.run}`") == 2
    outcome = check_identical(run, undisturbed(SETTINGS, 1))
    kept = list_unsent_starts(run.run)
    assert len(kept) == 2
    assert len({log.name for folder in kept for log in folder.glob("*.wandb")}) == 1  # one run of W&B's
    command = [sys.executable, "-m", "marble_cli", "sync", str(run.run)]
    sync = subprocess.run(command, env=run.environ, capture_output=True, text=True, check=False)
    assert sync.returncode == 1
    assert "W&B at http://127.0.0.1:9 cannot be reached" in sync.stderr
    assert list_unsent_starts(run.run) == kept
    record_fault(
        "W&B cannot be reached, at two starts", 2, run.lost(),
        f"kept offline for `marble sync RUN`, which says so while there is still no connection; {outcome}",
        "metrics/test_metrics.py",
    )  # fmt: skip
