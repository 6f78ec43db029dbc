"""Activations that are not finite on one process: no process takes the step; all continue or all stop."""

import random

import pytest

from tests.faults.conftest import REWARD_SETTINGS, REWARD_STEPS, FaultRecorder, JobMaker
from tests.faults.test_processes import agreement
from tests.faults.test_rewards import told

pytestmark = pytest.mark.long

SHORT = "run/test_loop.py"


def test_a_gradient_that_is_not_finite_on_one_rank(
    job: JobMaker, faulty: dict[str, str], record_fault: FaultRecorder
) -> None:
    """The same steps left out in one process give the same run, so all ranks left out the same."""
    chance = random.Random(60)
    last = 24  # roundings grow from step to step
    steps = sorted(chance.sample(range(2, last, 3), 6))  # never in a row
    runs = []
    for processes in (2, 1):
        settings = (*REWARD_SETTINGS, "~rewards.compressibility", f"trainer.steps={last}")
        run = job(*settings, processes=processes, environ=faulty, name=f"run-{processes}")
        run.finish(**told(dict.fromkeys(steps, ("spoils", 1)), processes))
        rows = run.rows()
        assert [row["step"] for row in rows] == list(range(1, last + 1))
        assert [row["step"] for row in rows if row.get("skipped")] == steps
        kept = sorted(file.name for file in (run.run / "skipped").iterdir())
        assert kept == [f"step-{s:08d}-rank-{r}.safetensors" for s in steps for r in range(processes)]
        runs.append([row for row in rows if not row.get("skipped")])
    agreed = agreement(*runs, ["reward/faulty/mean"])
    record_fault(
        "activations are no numbers, on one of 2 processes", len(steps), 0,
        f"the step is left out on both and counted (`skipped`), its batch kept; {agreed} as in one process",
        SHORT,
    )  # fmt: skip


def test_gradients_that_stay_infinite_on_one_rank(
    job: JobMaker, faulty: dict[str, str], record_fault: FaultRecorder
) -> None:
    stopped, chance, times = job(*REWARD_SETTINGS, processes=2, environ=faulty), random.Random(61), 2
    allowed = 2
    for _ in range(times):
        first = stopped.step() + 1
        bad = first + chance.randrange(2, 6)
        schedule = dict.fromkeys(range(bad, bad + 9), ("spoils", 1))
        process = stopped.start(f"trainer.max_skipped={allowed}", **told(schedule, 2, first))
        stopped.end(process, 1)
        assert stopped.step() == stopped.latest() == bad + allowed - 1
        assert [row["step"] for row in stopped.rows() if row.get("skipped")][-allowed:] == [bad, bad + 1]
    assert f"the gradients of {allowed + 1} steps in a row were not finite" in stopped.said()
    stopped.finish()
    assert [row["step"] for row in stopped.rows()] == list(range(1, REWARD_STEPS + 1))
    assert sum("skipped" in row for row in stopped.rows()) == allowed * times
    record_fault(
        "activations stay no numbers, on one of 2 processes", times, stopped.lost(),
        "past `trainer.max_skipped` both leave, exit code 1 with a checkpoint; well again, the run goes on "
        "to its end",
        SHORT,
    )  # fmt: skip
