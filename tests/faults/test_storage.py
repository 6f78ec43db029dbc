"""A disk that fills up during a run, and checkpoints that are damaged between a kill and the next start."""

import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from marble_cli.checkpoint import store
from tests.checkpoint import damage
from tests.faults.conftest import SETTINGS, FaultRecorder, JobMaker
from tests.faults.job import Job, check_identical
from tests.models import make_pipeline

pytestmark = pytest.mark.long

LARGE = (*SETTINGS, "model.lora.rank=64", "trainer.steps=60")  # checkpoints larger than all other files


def test_run_stopped_by_a_full_disk_resumes_to_the_same_result(
    job: JobMaker, undisturbed: JobMaker, record_fault: FaultRecorder
) -> None:
    """A limit on the size of files, set while the process runs, stands in for the full disk."""
    full, chance, refused = job(*LARGE), random.Random(3), {"checkpoint": 0, "metrics.jsonl": 0}
    for what in chance.sample(list(refused) * 2, 4):
        before, process = full.step(), full.start()
        due = before + 2 + chance.randrange(4)
        full.wait(process, lambda due=due: full.step() >= due)  # type: ignore[misc]
        time.sleep(chance.uniform(0, 0.15))
        room = 100_000 if what == "checkpoint" else (full.run / "metrics.jsonl").stat().st_size
        room += chance.randrange(2000)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        written = full.log.stat().st_size
        full.end(process, 1)
        said = " ".join(full.log.read_text()[written:].split())
        assert "could not be written" in said
        assert "File too large" in said
        assert "Traceback" not in said
        refused["metrics.jsonl" if "metrics.jsonl could not be written" in said else "checkpoint"] += 1
        assert not full.saving()
        for folder in store.steps(full.run):
            store.load(folder)
    full.finish()
    outcome = check_identical(full, undisturbed(LARGE, 1))
    assert min(refused.values()) > 0, refused
    found = ", ".join(f"{count} at a {name}" for name, count in refused.items())
    record_fault(
        f"the disk is full, then has room; {found.replace('a metrics', 'a row of metrics')}", 4, full.lost(),
        f"exit code 1, nothing half written, every checkpoint valid; {outcome}", "run/test_full_disk.py",
    )  # fmt: skip


@pytest.fixture(scope="module")
def foreign(base_overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A run like ours of a model of the same shapes with other weights, with a checkpoint of every step."""
    folder = tmp_path_factory.mktemp("foreign")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        make_pipeline().save_pretrained(folder / "model")
    every = ("trainer.steps=60", "trainer.checkpoint_every=1", "trainer.keep_every=1", "trainer.eval_every=0")
    made = Job(folder / "run", [*base_overrides, *SETTINGS, *every, f"model.path={folder / 'model'}"])
    made.finish()
    return made


def test_resume_passes_over_damaged_checkpoints(
    job: JobMaker, undisturbed: JobMaker, foreign: Job, record_fault: FaultRecorder
) -> None:
    def replace(folder: Path) -> None:
        shutil.rmtree(folder)
        shutil.copytree(foreign.run / "checkpoints" / folder.name, folder)

    harms: dict[str, tuple[Callable[[Path], None], str]] = {
        "foreign": (replace, "belongs to another model"),
        **{name: damage.COMMON[name] for name in ("truncated", "flipped", "missing", "newer")},
    }
    harmed, chance = job(*SETTINGS), random.Random(4)
    passed_over, continued_from = [], []
    for harm, expected in harms.values():
        due = harmed.step() + 9 + chance.randrange(4)  # two checkpoints at least
        process = harmed.start("--resume", "auto")
        harmed.wait(process, lambda due=due: harmed.step() >= due)  # type: ignore[misc]
        time.sleep(chance.uniform(0, 0.15))
        process.kill()
        harmed.end(process, -signal.SIGKILL)
        newest, older, *_ = store.steps(harmed.run)
        harm(newest)
        passed_over.append((newest.name, expected))
        continued_from.append(store.step_of(older))
    harmed.finish()
    said = harmed.said().split("checkpoint step-")
    for name, expected in passed_over:
        reason = next(
            part
            for part in said
            if part.startswith(f"{name.removeprefix('step-')} is not usable and was passed over: ")
        )
        assert expected in reason
    assert harmed.starts()[1:] == continued_from
    outcome = check_identical(harmed, undisturbed(SETTINGS, 1))
    record_fault(
        "SIGKILL, then the newest checkpoint is cut short, has a flipped byte, lacks a file, "
        "is of a newer format or of "
        "another model", len(harms), harmed.lost(),
        f"passed over by `--resume auto`, with a word on it; {outcome}",
        "checkpoint/test_store.py, cli/test_damaged_checkpoints.py",
    )  # fmt: skip
