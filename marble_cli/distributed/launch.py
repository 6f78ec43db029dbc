"""Start several processes of a run on this machine, keep watch over them, and start them anew when one is killed.

torch's elastic launcher starts all anew whatever ended one of them, a refused request among that, and passes on no second
Ctrl+C; what is needed of it is little.
"""

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from marble_cli.config.compose import dump
from marble_cli.config.schema import RunConfig
from marble_cli.errors import MarbleError
from marble_cli.signals import EXIT_CODES, Interrupt

log = logging.getLogger("marble")

STOPPED = EXIT_CODES[signal.SIGTERM]
PARENT = "MARBLE_LAUNCHER"  # variable with the process id of the launcher
POLL = 0.05  # seconds
PEERS = 2.0  # seconds that the others have, once a rank has failed, to fail with a message of their own
LAST_WORDS = 30.0  # seconds that they have to write what they still can
SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def launched() -> bool:
    """Whether a launcher such as torchrun started this process."""
    return "WORLD_SIZE" in os.environ


def end_with_launcher() -> None:
    """Have the kernel kill this process when its launcher dies, `marble train` or torchrun: nobody watches over it then.

    Others, such as SLURM, end their processes themselves.
    """
    ours = os.environ.get(PARENT)
    if sys.platform != "linux" or not (ours or "TORCHELASTIC_RUN_ID" in os.environ):
        return
    ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, int(signal.SIGKILL))
    if ours and os.getppid() != int(ours):  # it was too late for the kernel to tell
        os._exit(1)


def launch(config: RunConfig, resume: str) -> int:
    """Run `marble train` in `launcher.nproc` processes; returns the exit code of the contract.

    The configuration is composed once and handed over as a file, so that all processes agree on it. Where one is killed,
    all are started anew, at most `launcher.max_restarts` times, and go on from the newest checkpoint.

    Raises:
        MarbleError: a rank was killed, and there are no restarts left.
    """
    settings = config.launcher
    latest = Path(config.run.dir) / "checkpoints" / "latest"
    began = _written(latest)
    with tempfile.TemporaryDirectory() as folder, Interrupt() as interrupt:
        file = Path(folder) / "config.yaml"
        file.write_text(dump(config), encoding="utf-8")
        for restarts in range(settings.max_restarts + 1):
            again = restarts > 0 and (resume == "never" or _written(latest) != began)
            processes = _start(settings.nproc, file, "auto" if again else resume)
            failures = watch(processes, interrupt, settings.grace)
            if not failures:
                stopped = any(process.returncode for process in processes)
                return (interrupt.exit_code or STOPPED) if stopped else 0
            rank, code = _cause(failures)
            if code > 0:
                return code
            what = f"process {rank} was killed by {signal.Signals(-code).name}"
            if interrupt.exit_code is not None:
                what += f", asked to stop, before it had (launcher.grace={settings.grace:g} s)"
                break
            if restarts < settings.max_restarts:
                log.warning("%s; restart %d of %d", what, restarts + 1, settings.max_restarts)
    raise MarbleError(
        f"{what}. Continue the run from its newest checkpoint with --resume auto. SIGKILL often means that the machine's "
        f"memory ran out; launcher.max_restarts={settings.max_restarts}."
    )


def _written(latest: Path) -> int:
    """When the newest checkpoint was written, in nanoseconds; 0 if there is none."""
    return latest.stat().st_mtime_ns if latest.is_file() else 0


def _start(count: int, file: Path, resume: str) -> "list[subprocess.Popen[bytes]]":
    """The ranks, each in a session of its own: Ctrl+C reaches the launcher alone, which passes it on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        **os.environ, PARENT: str(os.getpid()), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
    }  # fmt: skip
    common.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    command = [sys.executable, "-m", "marble_cli", "train", "--config-name", str(file), "--resume", resume]
    return [
        subprocess.Popen(
            command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, start_new_session=True
        )
        for rank in range(count)
    ]


def watch(
    processes: "list[subprocess.Popen[bytes]]", interrupt: Interrupt, grace: float
) -> list[tuple[int, int]]:
    """Wait until all have ended, passing on what is asked for; one that fails takes the others with it.

    Returns:
        (rank, exit code) of those that failed, in the order in which that was seen; the code of a killed one is minus its
        signal. What was ended from here is among them only if it did not stop in time when that was asked for.

    Raises:
        KeyboardInterrupt: a second Ctrl+C; all are killed.
    """
    running = dict(enumerate(processes))
    failures: list[tuple[int, int]] = []
    sent: dict[int, signal.Signals] = {}
    ask_at = kill_at = deadline = float("inf")  # of the running ones; the last where they were asked to stop
    try:
        while running:
            now = time.monotonic()
            for rank, process in list(running.items()):
                if (code := process.poll()) is None:
                    continue
                del running[rank]
                if code in (0, STOPPED):
                    continue
                if code != -sent.get(rank, 0):
                    failures.append((rank, code))
                ask_at, kill_at = min(ask_at, now + PEERS), min(kill_at, now + LAST_WORDS)
            if interrupt.exit_code is not None and deadline == float("inf"):
                ask_at, deadline = now, now + grace
            if now >= ask_at:
                ask_at = float("inf")
                _send(running, signal.SIGTERM, sent)
            if now >= min(kill_at, deadline):
                failures += [(rank, -signal.SIGKILL) for rank in running if now >= deadline]
                _send(running, signal.SIGKILL, sent)
            time.sleep(POLL)
    except KeyboardInterrupt:
        _send(running, signal.SIGKILL, sent)
        raise
    return failures


def _send(running: "dict[int, subprocess.Popen[bytes]]", number: signal.Signals, sent: dict[int, signal.Signals]) -> None:  # fmt: skip
    for rank, process in running.items():
        process.send_signal(number)
        sent[rank] = number


def _cause(failures: list[tuple[int, int]]) -> tuple[int, int]:
    """The rank that was killed, if one was: the others then fail because it is gone, and may be seen to do so before.

    An abort comes last: it is how a backend ends a rank that has lost the others.
    """
    killed = [failure for failure in failures if failure[1] < 0 and failure[1] != -signal.SIGABRT]
    return [*killed, *failures][0]
