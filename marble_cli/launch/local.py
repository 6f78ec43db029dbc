"""Start the processes of a run on this machine with torch's elastic launcher, and restart killed ones."""

import ctypes
import logging
import math
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

from marble_cli.config.compose import dump
from marble_cli.config.schema import LauncherConfig, RunConfig
from marble_cli.errors import MarbleError, RequestError
from marble_cli.interrupts import EXIT_CODES, EXIT_FILE, recorded_exit_code

log = logging.getLogger("marble")

PARENT = "MARBLE_LAUNCHER"  # environment variable: process id of the launcher
SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def launched() -> bool:
    """Tell whether a launcher such as torchrun started this process."""
    return "WORLD_SIZE" in os.environ


def end_with_launcher() -> None:
    """Ask the kernel to kill this process when its launcher (`marble train` or torchrun) dies.

    Other launchers, such as SLURM, end their processes themselves.
    """
    if sys.platform != "linux" or not {"TORCHELASTIC_RUN_ID", PARENT} & os.environ.keys():
        return
    ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, int(signal.SIGKILL))
    ours = os.environ.get(PARENT)
    if ours and os.getppid() != int(ours):  # the launcher died before the call above
        os._exit(1)


def check_one_machine(launcher: LauncherConfig) -> None:
    """Check that the run needs this machine alone.

    Raises:
        RequestError: `launcher.nodes` is above 1.
    """
    if launcher.nodes > 1:
        raise RequestError(
            f"launcher.nodes={launcher.nodes}: launcher=local starts processes on this machine alone. "
            "Expected 1, launcher=slurm, or torchrun on every machine (docs/how-to/cluster.md)."
        )


class StopRequest:
    """Turn the first stop signal into an exception; a second Ctrl+C ends this process and its ranks.

    Attributes:
        number: the first stop signal; None before it arrives.
        since: the time at which it arrived, by `time.monotonic`.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.since = 0.0

    def __enter__(self) -> "StopRequest":
        self.previous = {number: signal.signal(number, self._handle) for number in EXIT_CODES}
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        from torch.distributed.elastic.multiprocessing.api import SignalException

        if self.number is None:
            self.number, self.since = number, time.monotonic()
            # The ranks get SIGTERM for any signal: ranks that are not training yet then end silently.
            raise SignalException("asked to stop", signal.SIGTERM)
        if number == signal.SIGINT:
            os._exit(EXIT_CODES[signal.SIGINT])

    def __exit__(self, *error: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def launch(config: RunConfig, resume: str) -> int:
    """Run `marble train` in `launcher.nproc` processes; return the exit code of the run.

    The configuration is composed once and passed on as a file, so that all processes use the same one. If a
    process is killed, all are restarted from the newest checkpoint, at most `launcher.max_restarts` times.
    The elastic launcher's own restarts are not used, because they follow every failure, including a refused
    request.

    Raises:
        MarbleError: a process was killed and no restarts are left, or a process did not stop in time.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // config.launcher.nproc)))
    os.environ[PARENT] = str(os.getpid())
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # failures are reported below
    with tempfile.TemporaryDirectory() as folder, StopRequest() as stop:
        exit_file = Path(folder) / "exit"
        os.environ[EXIT_FILE] = str(exit_file)
        try:
            return _run_with_restarts(config, resume, Path(folder) / "config.yaml", exit_file)
        except SignalException as error:
            code = recorded_exit_code(exit_file)
            if code not in (None, *EXIT_CODES.values()):
                assert code is not None
                return code  # the run failed while it was stopping
            grace = config.launcher.grace
            if code is None and stop.number is not None and time.monotonic() - stop.since > grace:
                raise MarbleError(f"the processes did not stop within launcher.grace={grace:g} s") from None
            number = signal.Signals(stop.number or error.sigval)
            return EXIT_CODES.get(number, 128 + number)


def _run_with_restarts(config: RunConfig, resume: str, file: Path, exit_file: Path) -> int:
    """Run the processes until they end by themselves; return the exit code in `exit_file`, or 0."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    file.write_text(dump(config), encoding="utf-8")
    latest = Path(config.run.dir) / "checkpoints" / "latest"
    before, restarts = _time_written(latest), config.launcher.max_restarts
    for restart in range(restarts + 1):
        continues = restart > 0 and (resume == "never" or _time_written(latest) != before)
        command = ["-m", "marble_cli", "train", "--config-name", str(file)]
        command += ["--resume", "auto" if continues else resume]
        try:
            elastic_launch(_elastic_config(config.launcher), sys.executable)(*command)
            return 0
        except ChildFailedError as error:
            failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
        if (code := recorded_exit_code(exit_file)) is not None:
            return code
        rank, code = _cause([(rank, failure.exitcode) for rank, failure in failures])
        if code > 0:  # marble would have recorded a code of its own
            log.warning(
                "process %d ended with exit code %d and no message: a reward's plugin or a library ended it. "
                "The last checkpoint stays",
                rank,
                code,
            )
            return code
        reason = f"process {rank} was killed by {signal.Signals(-code).name}"
        if restart < restarts:
            log.warning("%s; restart %d of %d", reason, restart + 1, restarts)
    raise MarbleError(
        f"{reason}. Continue the run from its newest checkpoint with --resume auto. SIGKILL often means that "
        f"the machine's memory ran out; launcher.max_restarts={restarts}."
    )


def _elastic_config(launcher: LauncherConfig) -> Any:
    """Return the settings of the elastic launcher.

    It must not handle the signals of `StopRequest`, nor SIGHUP, which nohup ignores. So it handles SIGQUIT
    only.
    """
    from torch.distributed.launcher.api import LaunchConfig

    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=launcher.nproc,
        run_id="marble",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        signals_to_handle="SIGQUIT",
        shutdown_timeout=math.ceil(launcher.grace),
    )


def _time_written(latest: Path) -> int:
    """Return the time at which the newest checkpoint was written, in nanoseconds; 0 if there is none."""
    return latest.stat().st_mtime_ns if latest.is_file() else 0


def _cause(failures: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the failure of the first killed rank, or the first failure if no rank was killed.

    Ranks fail when another rank was killed, and these failures may be reported first. A backend aborts a rank
    that lost the others, and the launcher ends ranks with SIGTERM, so neither signal counts as a kill.

    Args:
        failures: (rank, exit code) in the order in which they were reported; at least one.
    """
    consequences = (-signal.SIGABRT, -signal.SIGTERM)
    killed = [failure for failure in failures if failure[1] < 0 and failure[1] not in consequences]
    return [*killed, *failures][0]
