"""A run of `marble train` as a user starts it, and what can be told of it from outside."""

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from marble_cli.metrics.jsonl import read_rows

CLOCKS = ("time/", "throughput/", "balance/solve_seconds")
IDENTICAL = "weights and metrics identical to the undisturbed run"
STARTED = re.compile(r"INFO marble \S+, after step (\d+) of \d+$", re.MULTILINE)
NO_RESTARTS = ("launcher.max_restarts=0",)


class Job:
    """A run in one or several processes, in a session of its own.

    Whatever it starts, in whichever session, inherits a variable by which it is found.
    """

    def __init__(
        self, run: Path, overrides: Iterable[str], processes: int = 1, environ: dict[str, str] | None = None
    ) -> None:
        self.run, self.processes = run, processes
        self.log = run.with_suffix(".log")
        own = (*NO_RESTARTS, f"run.dir={run}")
        self.command = [sys.executable, "-m", "marble_cli", "train", *overrides, *own]
        self.mark = f"MARBLE_TEST_JOB={uuid.uuid4().hex}"
        self.environ = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **(environ or {})}
        self.environ.update([self.mark.split("=")])
        self.ends: list[int] = []  # the last recorded step when each start ended

    def start(self, *more: str, **environ: str) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*self.command, *more, "--nproc", str(self.processes)], env=self.environ | environ,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def end(self, process: "subprocess.Popen[bytes]", code: int | None, within: float = 300) -> None:
        """Wait for its end with this exit code (None: any but 0); no process of it may be left."""
        try:
            found = process.wait(within)
            assert found == code if code is not None else found != 0, f"exit code {found}: {self.said()}"
            deadline = time.monotonic() + 20
            while left := self.alive():
                assert time.monotonic() < deadline, f"processes are left: {left}"
                time.sleep(0.05)
        finally:
            for pid in self.alive():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        self.ends.append(self.step())

    def finish(self, *more: str, **environ: str) -> None:
        """Run to the last step."""
        self.end(self.start(*more, **environ), 0)

    def wait(
        self, process: "subprocess.Popen[bytes]", until: Callable[[], bool], within: float = 120
    ) -> None:
        """Wait until something is so while the run goes on."""
        deadline = time.monotonic() + within
        while not until():
            if process.poll() is not None or time.monotonic() > deadline:
                self.end(process, 0, within=0.1)
                raise AssertionError("the run ended before its fault")
            time.sleep(0.002)

    def alive(self) -> dict[int, str]:
        """Return the command lines of this job's processes by id, without those that have ended."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes():
                    command = (folder / "cmdline").read_bytes()
                    found[int(folder.name)] = command.replace(b"\0", b" ").decode()[:160]
            except OSError:
                continue
        return found

    def ranks(self, launcher: int) -> list[int]:
        """The processes that train, of a launcher that has started several."""
        own = self.alive()
        parents = {pid: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1] for pid in own}
        return sorted(pid for pid in own if parents[pid] == str(launcher) and "marble_cli train" in own[pid])

    def step(self) -> int:
        """The last step that is recorded."""
        return max(
            (row["step"] for row in read_rows(self.run / "metrics.jsonl") if row["phase"] == "train"),
            default=0,
        )

    def saving(self) -> bool:
        return any((self.run / "checkpoints").glob(".*.tmp"))

    def latest(self) -> int:
        return int((self.run / "checkpoints" / "latest").read_text().strip().removeprefix("step-"))

    def lost(self) -> int:
        """Count repeated steps: at each end, the last recorded one less the one that was resumed from."""
        starts = self.starts()
        assert len(starts) == len(self.ends), (starts, self.ends)
        return sum(end - start for end, start in zip(self.ends, starts[1:], strict=False))

    def starts(self) -> list[int]:
        """The step after which each start went on."""
        return [int(step) for step in STARTED.findall((self.run / "log.txt").read_text())]

    def said(self) -> str:
        """What it has written, words apart by one space each."""
        return " ".join(self.log.read_text(errors="replace").split())

    def rows(self) -> list[dict[str, Any]]:
        """Metrics without what a clock measured."""
        rows = read_rows(self.run / "metrics.jsonl")
        return [{key: row[key] for key in row if not key.startswith(CLOCKS)} for row in rows]

    def weights(self) -> dict[str, bytes]:
        """Every tensor file of the latest checkpoint."""
        folder = self.run / "checkpoints" / f"step-{self.latest():08d}"
        files = sorted(folder.rglob("*.safetensors"))
        assert len(files) == 4  # LoRA, moving average, behaviour policy, optimizer
        return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def check_identical(job: Job, undisturbed: Job) -> str:
    """Check same weights, same metrics, no step repeated or missing; return the outcome in words."""
    assert job.rows() == undisturbed.rows()
    assert job.weights() == undisturbed.weights()
    return IDENTICAL
