"""Run Python programs in forks of one process that has imported torch, diffusers and marble.

Each program takes seconds less. It is a process of its own, with its own arguments, variables, folder,
output, signals and exit code; only its imports were made before it began. If those are the subject, a test
starts an interpreter.

This file is both sides: `ForkServer` here, and the server when a Python, such as that of another environment,
runs it.
"""

import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MODULES = (
    "diffusers", "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.transformers.transformer_sd3",
    "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3", "transformers", "peft",
    "marble_cli.cli.app", "marble_cli.run.train", "marble_cli.evaluate.evaluate",
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
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.returncode) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"program {self.pid}", timeout or 0)
            time.sleep(0.005)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return (self.folder / "out").read_text(), (self.folder / "err").read_text()

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """A process of `python` that has imported `MODULES` and forks for each program."""

    def __init__(self, python: Path | str, environ: Mapping[str, str], folder: Path) -> None:
        self._folder, self._programs = folder, 0
        self._process = subprocess.Popen(
            [str(python), str(Path(__file__).resolve())], env={**environ, **IMPORTED_WITH}, cwd=folder,
            text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def start(
        self, arguments: Sequence[object], environ: Mapping[str, str], cwd: Path | None = None
    ) -> Program:
        """Start `python ARGUMENTS`, which are `-m MODULE ...` or the path of a file and what it is given."""
        self._programs += 1
        folder = self._folder / f"program-{self._programs}"
        folder.mkdir()
        request = {
            "arguments": [str(part) for part in arguments], "environ": dict(environ), "folder": str(folder),
            "cwd": str(cwd or Path.cwd()),
        }  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Program(int(self._process.stdout.readline()), folder)

    def close(self) -> None:
        """End the server; programs that still run stay."""
        self._process.communicate()


def _serve() -> list[str]:
    """Fork for each request; return in the fork only, with the program's arguments."""
    del sys.path[0]  # this folder
    gc.disable()
    for name in MODULES:
        __import__(name)
    gc.freeze()  # a collection in a fork would copy every page of what the imports made
    while line := os.read(0, 1 << 20):
        while not line.endswith(b"\n"):
            line += os.read(0, 1 << 20)
        request = json.loads(line)
        if os.fork():  # the server, which goes on once the program is on its way
            os.wait()
            continue
        if os.fork():  # between server and program, so that the server has no child to wait for
            os._exit(0)
        _watch(request)
        gc.enable()
        return list(request["arguments"])
    os._exit(0)


def _watch(request: dict[str, Any]) -> None:
    """Fork the program, in which this returns; its parent says how it ended."""
    folder = Path(request["folder"])
    if pid := os.fork():
        os.write(1, f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        (folder / "ending").write_text(str(os.waitstatus_to_exitcode(status)))
        (folder / "ending").rename(folder / "status")
        os._exit(0)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environ"])
    for name, number, flags in (
        ("/dev/null", 0, os.O_RDONLY),
        (folder / "out", 1, 0),
        (folder / "err", 2, 0),
    ):
        opened = os.open(name, flags or os.O_WRONLY | os.O_CREAT | os.O_APPEND if number else flags)
        os.dup2(opened, number)
        os.close(opened)


if __name__ == "__main__":
    program = _serve()
    sys.path.insert(0, os.getcwd() if program[0] == "-m" else str(Path(program[0]).parent))
    if program[0] == "-m":
        sys.argv = [program[1], *program[2:]]
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = program
        runpy.run_path(program[0], run_name="__main__")
