"""Start several processes of a run on this machine with torch's elastic launcher, and start them anew when one is killed."""

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
from marble_cli.errors import MarbleError
from marble_cli.interrupts import EXIT_CODES, EXIT_FILE, recorded_exit_code

log = logging.getLogger("marble")

PARENT = "MARBLE_LAUNCHER"  # variable with the process id of the launcher
SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def launched() -> bool:
    """Whether a launcher such as torchrun started this process."""
    return "WORLD_SIZE" in os.environ


def end_with_launcher() -> None:
    """Have the kernel kill this process when its launcher dies, `marble train` or torchrun: nobody watches over it then.

    Others, such as SLURM, end their processes themselves.
    """
    if sys.platform != "linux" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, int(signal.SIGKILL))
    ours = os.environ.get(PARENT)
    if ours and os.getppid() != int(ours):  # it was too late for the kernel to tell
        os._exit(1)


class Stop:
    """Turns the first signal that asks the run to stop into an exception; a second Ctrl+C ends this process and its ranks."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.since = 0.0

    def __enter__(self) -> "Stop":
        self.previous = {number: signal.signal(number, self._handle) for number in EXIT_CODES}
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        from torch.distributed.elastic.multiprocessing.api import SignalException

        if self.number is None:
            self.number, self.since = number, time.monotonic()
            # The ranks get SIGTERM, whatever it was: one that is not training yet then ends without a word.
            raise SignalException("asked to stop", signal.SIGTERM)
        if number == signal.SIGINT:
            os._exit(EXIT_CODES[signal.SIGINT])

    def __exit__(self, *error: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def launch(config: RunConfig, resume: str) -> int:
    """Run `marble train` in `launcher.nproc` processes; returns the exit code of the contract.

    The configuration is composed once and handed over as a file, so that all processes agree on it. Where one is killed,
    all are started anew, at most `launcher.max_restarts` times, and go on from the newest checkpoint. The elastic launcher's
    own restarts are not used: they follow whatever ended a process, a refused request among that.

    Raises:
        MarbleError: a process was killed, and there are no restarts left; or one did not stop in time.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // config.launcher.nproc)))
    os.environ[PARENT] = str(os.getpid())
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # what ended is told here
    with tempfile.TemporaryDirectory() as folder, Stop() as stop:
        told = Path(folder) / "exit"
        os.environ[EXIT_FILE] = str(told)
        try:
            return _go(config, resume, Path(folder) / "config.yaml", told)
        except SignalException as error:
            code = recorded_exit_code(told)
            if code not in (None, *EXIT_CODES.values()):
                assert code is not None
                return code  # the run failed when it was to stop
            grace = config.launcher.grace
            if code is None and stop.number is not None and time.monotonic() - stop.since > grace:
                raise MarbleError(f"the processes did not stop within launcher.grace={grace:g} s") from None
            number = signal.Signals(stop.number or error.sigval)
            return EXIT_CODES.get(number, 128 + number)


def _go(config: RunConfig, resume: str, file: Path, told: Path) -> int:
    """Until the run ends by itself; its exit code is the one that was `told`, or 0."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    file.write_text(dump(config), encoding="utf-8")
    latest = Path(config.run.dir) / "checkpoints" / "latest"
    began, restarts = _written(latest), config.launcher.max_restarts
    for restart in range(restarts + 1):
        again = restart > 0 and (resume == "never" or _written(latest) != began)
        command = ("-m", "marble_cli", "train", "--config-name", str(file), "--resume", "auto" if again else resume)  # fmt: skip
        try:
            elastic_launch(_settings(config.launcher), sys.executable)(*command)
            return 0
        except ChildFailedError as error:
            failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
        if (code := recorded_exit_code(told)) is not None:
            return code
        rank, code = _cause([(rank, failure.exitcode) for rank, failure in failures])
        if code > 0:
            return code
        what = f"process {rank} was killed by {signal.Signals(-code).name}"
        if restart < restarts:
            log.warning("%s; restart %d of %d", what, restart + 1, restarts)
    raise MarbleError(
        f"{what}. Continue the run from its newest checkpoint with --resume auto. SIGKILL often means that the machine's "
        f"memory ran out; launcher.max_restarts={restarts}."
    )


def _settings(launcher: LauncherConfig) -> Any:
    """Of the elastic launcher, whose own handlers are kept from the signals that `Stop` hears, and from SIGHUP, which nohup ignores."""
    from torch.distributed.launcher.api import LaunchConfig

    return LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=launcher.nproc, run_id="marble", rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", local_addr="127.0.0.1", max_restarts=0, signals_to_handle="SIGQUIT",
        shutdown_timeout=math.ceil(launcher.grace),
    )  # fmt: skip


def _written(latest: Path) -> int:
    """When the newest checkpoint was written, in nanoseconds; 0 if there is none."""
    return latest.stat().st_mtime_ns if latest.is_file() else 0


def _cause(failures: list[tuple[int, int]]) -> tuple[int, int]:
    """The rank that was killed first, if one was: the others fail because it is gone, and may be seen to do so before.

    An abort is how a backend ends a rank that has lost the others, and SIGTERM how the launcher does.

    Args:
        failures: (rank, exit code) in the order in which they were seen; at least one.
    """
    spared = (-signal.SIGABRT, -signal.SIGTERM)
    killed = [failure for failure in failures if failure[1] < 0 and failure[1] not in spared]
    return [*killed, *failures][0]
