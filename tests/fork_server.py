"""Run Python programs in forks of one process that has imported torch, diffusers and marble.

Each program takes seconds less. It is a process of its own, with its own arguments, variables, folder,
output, signals and exit code; only its imports were made before it began. If those are the subject, a test
starts an interpreter.

This file is all sides: `ForkServer` here; the server when a Python, such as that of another environment, runs
it; and a stand-in for that Python when run with `fork FOLDER` before a program's arguments.
"""

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import shlex
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

MODULES = (
    "diffusers", "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.transformers.transformer_sd3",
    "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3", "transformers", "peft",
    "marble_cli.cli.app", "marble_cli.run.train", "marble_cli.evaluate.evaluate",
    # What most commands import later.
    "diffusers.guiders", "diffusers.pipelines.onnx_utils", "marble_cli.policy.families.sd3",
    "marble_cli.rewards.builtin.colorfulness", "marble_cli.rewards.elsewhere.serving",
    "marble_cli.rewards.streams", "qpsolvers", "typer._adapters",
)  # fmt: skip
# As `marble` has them before it imports; threads of a mathematical library would not be in the forks.
IMPORTED_WITH = {
    "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error",
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
}  # fmt: skip


class Program:
    """One program, with those methods of `subprocess.Popen` that tests use."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid, self.folder = pid, folder

    @property
    def returncode(self) -> int | None:
        status = self.folder / "status"
        return int(status.read_text()) if status.exists() else None

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._sleep_to_its_end(timeout)
        while (code := self.returncode) is None:  # the server is about to write it
            ForkServer(self.folder.parent).close()  # raises if the server has ended
            time.sleep(0.001)
        return code

    def _sleep_to_its_end(self, timeout: float | None) -> None:
        with contextlib.suppress(ProcessLookupError), open(os.pidfd_open(self.pid), "rb", 0) as ended:
            if not select.select([ended], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"program {self.pid}", timeout or 0)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return (self.folder / "out").read_text(), (self.folder / "err").read_text()

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The server in `folder`, which forks for each program; see `tests.once.shared_server`."""

    def __init__(self, folder: Path, flags: int = os.O_NONBLOCK) -> None:
        """Connect to the server.

        Raises:
            OSError: it has not begun, or has ended. Without O_NONBLOCK it is waited for.
        """
        self._folder = folder
        self._connection = os.open(folder / "requests", os.O_WRONLY | flags)

    def start(
        self,
        arguments: Sequence[object],
        environ: Mapping[str, str],
        cwd: Path | None = None,
        stand_in: int | None = None,
        **streams: Path,
    ) -> Program:
        """Start `python ARGUMENTS`: `[-W error] -m MODULE ...`, or the path of a file and what it is given.

        It writes to the files `out` and `err`, in a folder of its own by default, and reads `input`, by
        default an empty one. It is killed if the process `stand_in` ends.
        """
        own = Path(tempfile.mkdtemp(prefix="program-", dir=self._folder))
        request = {
            "arguments": [str(part) for part in arguments], "environ": dict(environ),
            "cwd": str(cwd or Path.cwd()), "stand_in": stand_in,
            "input": str(streams.get("input", os.devnull)),
            **{name: str(streams.get(name, own / name)) for name in ("out", "err")},
        }  # fmt: skip
        (own / "request").write_text(json.dumps(request))
        os.write(self._connection, f"{own}\n".encode())
        while not (own / "pid").exists():
            ForkServer(self._folder).close()  # raises if the server has ended
            time.sleep(0.005)
        return Program(int((own / "pid").read_text()), own)

    def write_python(self, file: Path) -> None:
        """Write a command that takes the place of this Python in scripts; each call is such a program."""
        words = shlex.join([sys.executable, "-S", __file__, "fork", str(self._folder)])
        file.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        file.chmod(0o755)

    def close(self) -> None:
        """Leave the server, which ends when all have left; programs that still run stay."""
        os.close(self._connection)


def start_server(
    python: Path | str, environ: Mapping[str, str], folder: Path, modules: Sequence[str] = MODULES
) -> ForkServer:
    """Let `python` import `modules` and serve in a folder."""
    (folder / "requests").unlink(missing_ok=True)
    os.mkfifo(folder / "requests")
    command = ["sh", "-c", '"$@" < requests &', "sh", str(python), str(Path(__file__).resolve()), *modules]
    subprocess.run(command, env={**environ, **IMPORTED_WITH}, cwd=folder, check=True)
    return ForkServer(folder, flags=0)


def _stand_in(folder: Path, arguments: list[str]) -> None:
    """Be the program to whoever started this process: pass streams and signals on, and end as it ends.

    The program is no child of marble's launcher, so that its check for one is made here.
    """
    launcher = os.environ.pop("MARBLE_LAUNCHER", None)
    assert launcher in (None, str(os.getppid())), f"the launcher is not {launcher}"
    streams = {
        name: Path(f"/proc/{os.getpid()}/fd/{number}")
        for number, name in enumerate(("input", "out", "err"))
        if number or stat.S_ISFIFO(os.fstat(0).st_mode)
    }
    program = ForkServer(folder).start(arguments, os.environ, stand_in=os.getpid(), **streams)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: program.send_signal(number))
    code = program.wait()
    for number in (1, 2):
        with contextlib.suppress(OSError):  # a pipe
            os.lseek(number, 0, os.SEEK_END)  # whoever shares a file writes after the program
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def _serve() -> list[str]:
    """Fork for each request; return in the fork only, with the program's arguments."""
    del sys.path[0]  # this folder
    gc.disable()
    for name in sys.argv[1:]:
        __import__(name)
    if "marble_cli.cli.app" in sys.modules:
        _fill_caches()
    gc.freeze()  # a collection in a fork would copy every page of what the imports made
    poll, requests = select.poll(), b""
    poll.register(0)
    running, ends = set[int](), dict[int, Callable[[], None]]()

    def watch(pid: int, then: Callable[[], None]) -> None:
        try:
            descriptor = os.pidfd_open(pid)  # which can be read when the process has ended
        except ProcessLookupError:
            then()
        else:
            poll.register(descriptor)
            ends[descriptor] = then

    def note_end(pid: int, folder: Path) -> None:
        running.remove(pid)
        _write(folder / "status", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    def kill(pid: int) -> None:
        if pid in running:
            os.kill(pid, signal.SIGKILL)

    while True:
        for ready, _ in poll.poll():
            if ready:
                poll.unregister(ready)
                os.close(ready)
                ends.pop(ready)()
            elif read := os.read(0, 1 << 20):
                requests += read
            else:
                os._exit(0)
        *lines, requests = requests.split(b"\n")
        for folder in (Path(line.decode()) for line in lines):
            request = json.loads((folder / "request").read_text())
            if not (pid := os.fork()):
                for descriptor in ends:
                    os.close(descriptor)
                gc.enable()
                return _begin(request)
            running.add(pid)
            _write(folder / "pid", pid)
            watch(pid, partial(note_end, pid, folder))
            if stand_in := request["stand_in"]:
                watch(stand_in, partial(kill, pid))


def _fill_caches() -> None:
    """Make tables that the libraries keep, and that depend on no argument, variable or file of a program."""
    from hydra.core.plugins import Plugins
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from marble_cli.config.typed import completed

    Plugins.instance()
    completed({})
    get_checkpoint_conversion_mapping("clip")


def _begin(request: dict[str, Any]) -> list[str]:
    """Be the program that a request asks for; return its arguments."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environ"])
    appended = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for name, number, flags in (
        (request["input"], 0, os.O_RDONLY),
        (request["out"], 1, appended),
        (request["err"], 2, appended),
    ):
        opened = os.open(name, flags)
        os.dup2(opened, number)
        os.close(opened)
    # Those of the server know whether its own files can seek. sys.__stdout__ keeps a wrapped stream open.
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)
    error = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    sys.stderr = sys.__stderr__ = error
    return list(request["arguments"])


def _write(file: Path, number: int) -> None:
    """Write a number so that no reader finds half of it."""
    draft = file.with_suffix(".writing")
    draft.write_text(str(number))
    draft.rename(file)


def _run(program: list[str]) -> None:
    if program[:2] == ["-W", "error"]:
        warnings.simplefilter("error")
        del program[:2]
    sys.path.insert(0, os.getcwd() if program[0] == "-m" else str(Path(program[0]).parent))
    if program[0] == "-m":
        sys.argv = program[1:]
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = program
        runpy.run_path(program[0], run_name="__main__")


def _end(code: object) -> None:
    """End as Python does, but leave the memory to the system: to free all modules takes half a second."""
    if isinstance(code, int | None):
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit((code or 0) & 0xFF)
    sys.exit(code)  # type: ignore[arg-type]


if __name__ == "__main__":
    if sys.argv[1:2] == ["fork"]:
        _stand_in(Path(sys.argv[2]), sys.argv[3:])
    try:
        _run(_serve())
    except SystemExit as end:
        _end(end.code)
    _end(None)
