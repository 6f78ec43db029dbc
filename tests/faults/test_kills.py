"""SIGKILL at random instants, and signals that ask a run to stop: neither leaves a trace."""

import os
import random
import signal
import subprocess
import time
from collections import Counter

import pytest

from tests.faults.conftest import SETTINGS, FaultRecorder, JobMaker
from tests.faults.job import Job, check_identical

pytestmark = pytest.mark.long

EVALUATIONS = 10  # steps between two
INSTANTS = ["at any time"] * 4 + ["while a checkpoint was written"] * 3 + ["in an evaluation"] * 3


@pytest.mark.parametrize("processes", [1, 2])
def test_ten_kills_leave_no_trace(
    job: JobMaker, undisturbed: JobMaker, record_fault: FaultRecorder, processes: int
) -> None:
    killed, chance, hits = job(*SETTINGS, processes=processes), random.Random(processes), Counter[str]()
    for instant in chance.sample(INSTANTS, len(INSTANTS)):
        process = killed.start()
        wait_for(killed, process, instant, chance)
        if processes == 1:
            process.kill()
            killed.end(process, -signal.SIGKILL)
        else:
            ranks = killed.ranks(process.pid)
            assert len(ranks) == processes
            os.kill(chance.choice(ranks), signal.SIGKILL)
            killed.end(process, None)
        hits["while a checkpoint was written"] += killed.saving()
        hits["in an evaluation"] += in_evaluation(killed)
    killed.finish()
    outcome = check_identical(killed, undisturbed(SETTINGS, processes))
    if processes == 1:
        assert min(hits.values()) > 0, hits  # else the test has not tried what it says
    found = ", ".join(f"{count} {instant}" for instant, count in sorted(hits.items()) if count)
    who = "the only process" if processes == 1 else f"one of {processes} processes"
    record_fault(f"SIGKILL of {who}; {found}", len(INSTANTS), killed.lost(), outcome, "e2e/test_resume.py")


def wait_for(job: Job, process: "subprocess.Popen[bytes]", instant: str, chance: random.Random) -> None:
    """Wait for new steps, and then for an instant of this kind."""
    before = job.step()
    if instant == "in an evaluation":
        due = (before // EVALUATIONS + 1) * EVALUATIONS
        job.wait(process, lambda: job.step() >= due)
        return
    due = before + 1 + chance.randrange(6)
    job.wait(process, lambda: job.step() >= due)
    if instant == "at any time":
        time.sleep(chance.uniform(0, 0.15))
    else:
        job.wait(process, job.saving)


def in_evaluation(job: Job) -> bool:
    """Whether the last step was to be evaluated and had not been when the run ended."""
    last = job.rows()[-1]
    return bool(last["phase"] == "train" and last["step"] % EVALUATIONS == 0)


STOPS = [("SIGTERM", 143), ("SIGUSR1", 143), ("SIGINT", 130)]


@pytest.mark.parametrize(("processes", "stops"), [(1, STOPS * 3), (2, STOPS * 2)])
def test_signals_stop_a_run_within_the_step(
    job: JobMaker,
    undisturbed: JobMaker,
    record_fault: FaultRecorder,
    processes: int,
    stops: list[tuple[str, int]],
) -> None:
    stopped, chance, slowest = job(*SETTINGS, processes=processes), random.Random(10 + processes), 0.0
    for name, code in chance.sample(stops, len(stops)):
        before, process = stopped.step(), stopped.start()
        due = before + 1 + chance.randrange(6)
        stopped.wait(process, lambda due=due: stopped.step() >= due)  # type: ignore[misc]
        time.sleep(chance.uniform(0, 0.15))
        sent, step = time.monotonic(), stopped.step()
        os.killpg(process.pid, getattr(signal, name))  # as Ctrl+C does, and a batch system
        stopped.end(process, code)
        slowest = max(slowest, time.monotonic() - sent)
        assert stopped.latest() == stopped.step() <= step + 2  # that under way, and one begun meanwhile
    stopped.finish()
    outcome = check_identical(stopped, undisturbed(SETTINGS, processes))
    assert stopped.lost() == 0
    who = "one process" if processes == 1 else f"a launcher of {processes} processes"
    codes = ", ".join(f"{code} for {name}" for name, code in sorted(set(stops)))
    record_fault(
        f"a signal that asks {who} to stop", len(stops), stopped.lost(),
        f"a checkpoint of the step under way, {slowest:.0f} s at most; exit code {codes}; {outcome}",
        "e2e/test_resume.py, run/test_interrupt.py",
    )  # fmt: skip
