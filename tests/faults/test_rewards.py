"""Rewards that raise, hang, answer NaN, infinity or too little, or lose their server."""

import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.faults.conftest import REWARD_SETTINGS, REWARD_STEPS, FaultRecorder, JobMaker
from tests.faults.job import Job, check_identical

pytestmark = pytest.mark.long

IMAGES = 12  # of a step
ATTEMPTS = 3
SHORT = "e2e/test_reward_faults.py"
Schedule = dict[int, tuple[str, int]]  # what goes wrong at a step, in so many attempts
SICK = [1, 2]  # processes; of several only the last is concerned


def told(schedule: Schedule, processes: int, first: int = 1) -> dict[str, str]:
    """The environment in which the reward keeps to `schedule` in a start whose first step is `first`."""
    batches = {step - first + 1: fault for step, fault in schedule.items()}
    return {"FAULTY": json.dumps(batches), "FAULTY_RANK": str(processes - 1)}


def who(processes: int) -> str:
    return "" if processes == 1 else f", on one of {processes} processes"


@pytest.mark.parametrize("processes", SICK)
def test_reward_that_succeeds_on_a_retry_changes_nothing(
    job: JobMaker, undisturbed: JobMaker, faulty: dict[str, str], record_fault: FaultRecorder, processes: int
) -> None:
    chance = random.Random(20 + processes)
    faults = [("raises", 1), ("raises", 2)] * 3 + [("hangs", 1), ("hangs", 2)]
    steps = chance.sample(range(1, REWARD_STEPS + 1), len(faults))
    retried = job(*REWARD_SETTINGS, processes=processes, environ=faulty)
    retried.finish(**told(dict(zip(steps, faults, strict=True)), processes))
    assert retried.said().count("did not answer; building it anew") == 3
    outcome = check_identical(retried, undisturbed(REWARD_SETTINGS, processes))
    record_fault(
        f"a reward raises or hangs once or twice{who(processes)}",
        len(faults),
        0,
        f"tried again; {outcome}",
        SHORT,
    )


@pytest.mark.parametrize("processes", SICK)
def test_reward_that_fails_every_attempt_is_masked_and_counted(
    job: JobMaker, faulty: dict[str, str], record_fault: FaultRecorder, processes: int
) -> None:
    chance = random.Random(30 + processes)
    faults = [("raises", ATTEMPTS), ("inf", ATTEMPTS), ("nan", ATTEMPTS)] * 3 + [("hangs", ATTEMPTS)]
    schedule = dict(zip(chance.sample(range(1, REWARD_STEPS + 1), len(faults)), faults, strict=True))
    masked = job(*REWARD_SETTINGS, "rewards.faulty.max_failed=1", processes=processes, environ=faulty)
    masked.finish(**told(schedule, processes))
    concerned, rows = IMAGES // processes, masked.rows()
    assert [row["step"] for row in rows] == list(range(1, REWARD_STEPS + 1))
    for row in rows:
        what, _ = schedule.get(row["step"], (None, 0))
        failed = {"raises": concerned, "hangs": concerned, "inf": concerned // 2}.get(what, 0)
        without = failed + (concerned // 2 if what == "nan" else 0)
        assert row["reward/faulty/failed"] == failed
        assert row["reward/faulty/applicable"] == IMAGES - without
        for other in ("colorfulness", "compressibility"):
            assert row[f"reward/{other}/failed"] == 0
            assert row[f"reward/{other}/applicable"] == IMAGES
    record_fault(
        "a reward raises, hangs or answers infinity at every attempt, or NaN for some images"
        f"{who(processes)}",
        len(faults), 0,
        "masked for these images and this reward alone and counted in `reward/<name>/failed`, "
        "NaN as not applicable; the run "
        "goes on", SHORT,
    )  # fmt: skip


@pytest.mark.parametrize("processes", SICK)
def test_reward_that_fails_too_often_stops_the_run(
    job: JobMaker, undisturbed: JobMaker, faulty: dict[str, str], record_fault: FaultRecorder, processes: int
) -> None:
    chance, stopped = (
        random.Random(40 + processes),
        job(*REWARD_SETTINGS, processes=processes, environ=faulty),
    )
    whats = ["raises", "inf", "hangs", "short"]
    for what in whats:
        last = stopped.step() + chance.randrange(2, 10)
        process = stopped.start(**told({last + 1: (what, ATTEMPTS)}, processes, stopped.step() + 1))
        stopped.end(process, 1, within=120)
        assert stopped.step() == stopped.latest() == last
    said = stopped.said()
    failed = {"inf": IMAGES // 2 // processes}
    for what in whats[:3]:
        count = failed.get(what, IMAGES // processes)
        assert (
            f"reward faulty failed on {count} of 12 images, more than rewards.faulty.max_failed=0.2" in said
        ), what
    assert f"scores of shape [{IMAGES // processes - 1}] for {IMAGES // processes} images" in said
    stopped.finish()
    outcome = check_identical(stopped, undisturbed(REWARD_SETTINGS, processes))
    record_fault(
        f"a reward fails beyond `max_failed`, or breaks its contract{who(processes)}", len(whats),
        stopped.lost(),
        f"all leave together, exit code 1, with a checkpoint; well again, {outcome}", SHORT,
    )  # fmt: skip


def test_reward_that_fails_before_training_on_one_rank_stops_all(
    job: JobMaker, faulty: dict[str, str], record_fault: FaultRecorder
) -> None:
    never = job(*REWARD_SETTINGS, processes=2, environ=faulty)
    began = time.monotonic()
    process = never.start(**told({0: ("raises", ATTEMPTS)}, 2))
    never.end(process, 1)
    assert "reward faulty failed on the first image it was shown, before training began" in never.said()
    assert never.step() == 0
    record_fault(
        "a reward is ill at the start, on one of 2 processes", 1, 0,
        f"exit code 1 before the first step, {time.monotonic() - began:.0f} s after the start; "
        "nobody is left waiting",
        SHORT,
    )  # fmt: skip


class Server:
    """`marble rewards serve faulty` at a port of its own."""

    def __init__(self, environ: dict[str, str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.environ = f"http://127.0.0.1:{self.port}", environ

    def start(self) -> None:
        command = [sys.executable, "-m", "marble_cli", "rewards", "serve", "faulty", "--port", str(self.port)]
        self.process = subprocess.Popen(command, env=self.environ, stdout=subprocess.DEVNULL)

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server(job: JobMaker, faulty: dict[str, str]) -> Iterator[Server]:
    made = Server(job(environ=faulty).environ)
    start_and_wait(made)
    yield made
    made.kill()


def start_and_wait(server: Server) -> None:
    server.start()
    deadline = time.monotonic() + 60
    while not server.ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_reward_server_is_retried_and_stops_the_run_if_it_stays_away(
    job: JobMaker,
    undisturbed: JobMaker,
    server: Server,
    faulty: dict[str, str],
    record_fault: FaultRecorder,
    processes: int,
) -> None:
    run = job(*REWARD_SETTINGS, f"rewards.faulty.url={server.url}", processes=processes, environ=faulty)
    chance, kills = random.Random(50 + processes), 3
    process = run.start("rewards.faulty.retries=1")
    kill_after(run, process, server, chance)
    run.end(process, 1)  # nobody starts it again
    assert run.latest() == run.step() > 0
    assert f"See to its server at {server.url}" in run.said()
    start_and_wait(server)
    process = run.start("rewards.faulty.retries=20")
    for _ in range(kills):
        kill_after(run, process, server, chance)
        time.sleep(chance.uniform(0, 1))
        server.start()
        step = run.step()
        run.wait(process, lambda step=step: run.step() > step)  # type: ignore[misc]
    run.end(process, 0)
    outcome = check_identical(run, undisturbed(REWARD_SETTINGS, processes))
    assert sum(row["reward/faulty/failed"] for row in run.rows()) == 0
    record_fault(
        f"SIGKILL of a reward's server{f', {processes} processes' if processes > 1 else ''}; "
        f"started again in mid-run {kills} times, once left away",
        kills + 1, run.lost(),
        f"tried again until it answers; left away, exit code 1 with a checkpoint; {outcome}",
        "e2e/test_served_rewards.py",
    )  # fmt: skip


def kill_after(run: Job, process: "subprocess.Popen[bytes]", server: Server, chance: random.Random) -> None:
    due = run.step() + 1 + chance.randrange(6)
    run.wait(process, lambda: run.step() >= due)
    time.sleep(chance.uniform(0, 0.15))
    server.kill()
