"""Run a reward in a server process in its isolated environment, for as long as a run needs it.

The server reads from standard input which reward to serve, and stops when standard input closes. The run
alone has the write end of that pipe, so the kernel closes it however the run ends.
"""

import json
import logging
import os
import secrets
import signal
import subprocess
import threading
from contextlib import suppress
from dataclasses import asdict, replace
from typing import IO, Any

import httpx
import yaml

from marble_cli.config import schema
from marble_cli.errors import ConfigError, RewardError
from marble_cli.interrupts import blocked_signals
from marble_cli.rewards.api import Batch, Declaration
from marble_cli.rewards.elsewhere.client import Address, connect
from marble_cli.rewards.elsewhere.environment import clean_environ, find
from marble_cli.rewards.elsewhere.protocol import declaration_from_json
from marble_cli.rewards.registry import Reward

log = logging.getLogger("marble")

LAUNCHER = (  # prefixes of variables by which a process would take itself for a rank of the run
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_",
    "GROUP_",
    "ROLE_",
    "TORCHELASTIC_",
    "MARBLE_LAUNCHER",
)
OF_THE_RUN = ("role", "margin", "weight", "sources", "only_if", "frames")  # keys that a server does not need
STOP = 5.0  # seconds that a server has to stop before it is killed


def declare_isolated(name: str, settings: schema.RewardConfig, key: str) -> Declaration:
    """Return the reward's declaration, after its environment has checked its options.

    Raises:
        ConfigError: there is no environment for it, or an option is wrong.
        RewardError: it cannot be imported in its environment.
    """
    done = subprocess.run(
        [*serve_command(settings.plugin), "--dry-run"],
        input=request_line(name, settings, "cpu", None, key),
        stdout=subprocess.PIPE,
        text=True,
        env=environ(),
        check=False,
    )
    answer = read_answer(name, done.stdout.splitlines())
    if answer is None:
        raise RewardError(describe_end(name, done.returncode))
    return declaration_from_json(answer["rewards"][name])


class IsolatedServer:
    """The process that serves one reward to this process; `start` replaces a process that is there."""

    def __init__(self, name: str, settings: schema.RewardConfig, device: str, key: str):
        self.name, self.settings, self.device, self.key = name, settings, device, key
        self.starts = 0
        self.process: subprocess.Popen[str] | None = None
        self.closed = False
        self.lock = threading.Lock()

    def start(self) -> Reward:
        """Start the process, kill an earlier one, and wait until it serves.

        Raises:
            ConfigError, RewardError: the reward cannot be built in its environment, or was closed.
        """
        token = secrets.token_urlsafe(32)
        with self.lock, blocked_signals():
            if self.closed:
                raise RewardError(f"reward {self.name} was closed")
            self._kill()
            self.starts += 1
            if self.starts > 1:
                log.warning("reward %s: restart %d of its server", self.name, self.starts - 1)
            self.process = process = subprocess.Popen(
                serve_command(self.settings.plugin),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environ(),
                start_new_session=True,  # only the run gets Ctrl+C; the plugin's processes can be killed
            )
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(BrokenPipeError):  # the process has ended: reported below
                process.stdin.write(request_line(self.name, self.settings, self.device, token, self.key))
                process.stdin.flush()
            answer = read_answer(self.name, process.stdout)
            if answer is None:
                raise RewardError(describe_end(self.name, process.wait()))
            return self._reward(Address(answer["url"], token))
        except BaseException:
            with self.lock:
                self._kill()
            raise

    def _reward(self, at: Address) -> Reward:
        served = connect(self.key, self.name, at, self.settings.timeout)
        lost = threading.Event()

        def call(batch: Batch) -> Any:
            try:
                return served.call(batch)
            except httpx.TransportError:  # a local process: it has died or hangs
                lost.set()
                raise

        return replace(served, call=call, close=self.stop, alive=lambda: not lost.is_set())

    def stop(self) -> None:
        """End the process for good; a start in progress fails."""
        with self.lock:
            self.closed = True
            if self.process is not None and self.process.stdin is not None:
                with suppress(BrokenPipeError):
                    self.process.stdin.close()
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(STOP)
            self._kill()

    def _kill(self) -> None:
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            # Its group: the server and the processes that it started.
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        self.process = None


def serve_command(plugin: str) -> list[str]:
    """Return the command line of a server of `plugin`, which reads its request from standard input."""
    unlimited = str(2**62)  # the run has such a batch in memory already
    serve = ("rewards", "serve", "--stdin", "--max-images", unlimited, "--max-bytes", unlimited)
    return find(plugin).command(*serve)


def request_line(name: str, settings: schema.RewardConfig, device: str, token: str | None, key: str) -> str:
    """Return the line that `marble rewards serve --stdin` reads; its timeout is longer than the run's own.

    Options travel as YAML: JSON would make texts of keys that are numbers.
    """
    row = {key: value for key, value in asdict(settings).items() if key not in OF_THE_RUN}
    row |= {"isolated": False, "aspects": [*settings.aspects], "timeout": 2 * settings.timeout}
    row["options"] = yaml.safe_dump(row["options"], sort_keys=False)
    return json.dumps({"rewards": {name: row}, "device": device, "token": token, "keys": {name: key}}) + "\n"


def environ() -> dict[str, str]:
    """Return the environment variables of a process that is no rank of the run."""
    return {key: value for key, value in clean_environ().items() if not key.startswith(LAUNCHER)}


def read_answer(name: str, lines: IO[str] | list[str]) -> dict[str, Any] | None:
    """Read the document that the server prints when it is ready; None if it ended before.

    Raises:
        ConfigError, RewardError: the error that the server printed instead.
    """
    for line in lines:
        try:
            answer = json.loads(line)
        except ValueError:
            continue
        if "error" in answer:
            kind = ConfigError if answer["exit_code"] == ConfigError.exit_code else RewardError
            raise kind(f"isolated reward {name}: {answer['error']}")
        return dict(answer)
    return None


def describe_end(name: str, code: int) -> str:
    """Say that a server ended before it served."""
    return (
        f"isolated reward {name}: its server ended with exit code {code} before it served; see its messages "
        "above. `marble rewards install` repairs an environment."
    )
