"""Share the server of an isolated reward among the ranks of a machine.

The ranks meet in a folder with, for each reward,

    server.json     the server that serves now: number of its start, process id, address, token
    life            a pipe that is the server's standard input and that every rank holds open: the kernel
                    closes it when the last rank has ended, however that was, and the server ends
    turn, next      locks: the rank that holds `turn` calls the server, or replaces it. `next` is for the rank
                    that waits for it, so that no rank has two turns while another waits
    members         a lock that every rank shares; who can have it alone is the last, and cleans up

One rank calls at a time, so a timeout runs for that rank's call alone and answers cannot be mixed up.
"""

import fcntl
import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from marble_cli.config import schema
from marble_cli.errors import RewardError, UnreachableError
from marble_cli.interrupts import blocked_signals
from marble_cli.rewards.api import Batch
from marble_cli.rewards.elsewhere.client import Address, RemoteError, connect
from marble_cli.rewards.elsewhere.isolated import (
    STOP,
    describe_end,
    environ,
    read_answer,
    request_line,
    serve_command,
)
from marble_cli.rewards.elsewhere.meeting import Machine
from marble_cli.rewards.registry import Reward

log = logging.getLogger("marble")

POLL = 0.02  # seconds between two attempts to take a lock
LOCKS = ("turn", "next", "members")


@dataclass(frozen=True)
class Serving:
    """The content of server.json."""

    number: int
    pid: int
    url: str
    token: str


class SharedServer:
    """A rank's access to the process that serves one reward to all ranks of the machine."""

    def __init__(self, name: str, settings: schema.RewardConfig, machine: Machine, key: str):
        self.name, self.settings, self.device, self.key = name, settings, machine.device, key
        self.folder = machine.folder / quote(name, safe="")
        self.folder.mkdir(exist_ok=True)
        with suppress(FileExistsError):
            os.mkfifo(self.folder / "life", 0o600)
        self.life = os.open(self.folder / "life", os.O_RDWR | os.O_NONBLOCK)
        self.locks = {lock: os.open(self.folder / lock, os.O_RDWR | os.O_CREAT, 0o600) for lock in LOCKS}
        for lock in self.locks.values():
            weakref.finalize(self, os.close, lock)  # not earlier: a thread may still wait for its turn
        fcntl.flock(self.locks["members"], fcntl.LOCK_SH)
        self.known = self.pid = 0  # start and process of the server that `served` is connected to
        self.served: Reward | None = None
        self.child: subprocess.Popen[str] | None = None
        self.starting = self.in_turn = False
        self.lost, self.closed = threading.Event(), threading.Event()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for this rank's turn, and have it inside the block.

        Raises:
            RewardError: the reward was closed.
        """
        self._lock("next")
        try:
            self._lock("turn")
        finally:
            fcntl.flock(self.locks["next"], fcntl.LOCK_UN)
        self.in_turn = True
        try:
            yield
        finally:
            self.in_turn = False
            fcntl.flock(self.locks["turn"], fcntl.LOCK_UN)

    def _lock(self, name: str) -> None:
        while not self.closed.is_set():
            try:
                fcntl.flock(self.locks[name], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.closed.wait(POLL)
            else:
                return
        raise RewardError(f"reward {self.name} was closed")

    def start(self) -> Reward:
        """Connect to the server; start it first if there is none, or if the latest has failed.

        Raises:
            ConfigError, RewardError: the reward cannot be built in its environment, or was closed.
        """
        first = self.known == 0
        try:
            with nullcontext() if self.in_turn else self.turn():
                serving, served = self._read(), None
                if serving is not None and serving.number != self.known:
                    with suppress(UnreachableError):  # this rank is the first to find out
                        served = self._connect(serving)
                served = served or self._connect(self._replace(serving))
        except BaseException:
            if first:
                self._leave()
            raise
        return replace(
            served, call=self._call, close=self.stop, alive=lambda: not self.lost.is_set(), turn=self.turn
        )

    def _call(self, batch: Batch) -> Any:
        """Call the server in this rank's turn; it may be another one than at the last call."""
        serving, served = self._read(), self.served
        assert serving is not None
        try:
            if served is None or serving.number != self.known:
                served = self._connect(serving)
            return served.call(batch)
        except (httpx.TransportError, UnreachableError) as error:  # a local process: it has died or hangs
            self.lost.set()
            if isinstance(error, UnreachableError):  # which stops a run
                raise RemoteError("another process restarted its server, which is gone as well") from error
            raise

    def _connect(self, serving: Serving) -> Reward:
        at = Address(serving.url, serving.token)
        served = connect(self.key, self.name, at, self.settings.timeout)
        if self.served is not None:
            self.served.close()
        self.known, self.pid, self.served = serving.number, serving.pid, served
        self.lost.clear()
        return served

    def _read(self) -> Serving | None:
        file = self.folder / "server.json"
        return Serving(**json.loads(file.read_text())) if file.is_file() else None

    def _replace(self, old: Serving | None) -> Serving:
        """Start the server, after an earlier one has been killed, and wait until it serves."""
        number, token = 1, secrets.token_urlsafe(32)
        if old is not None:
            number = old.number + 1
            log.warning("reward %s: restart %d of its server", self.name, old.number)
            self._kill(old.pid)
        self._close_output()
        with suppress(BlockingIOError):  # what a server that died at its start has not read
            while os.read(self.life, 4096):
                pass
        self.starting = True
        with blocked_signals():
            life = os.open(self.folder / "life", os.O_RDONLY)
            try:
                self.child = process = subprocess.Popen(
                    serve_command(self.settings.plugin),
                    stdin=life,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=environ(),
                    start_new_session=True,  # only the run gets Ctrl+C; the plugin's processes can be killed
                )
            finally:
                os.close(life)
        try:
            self._send(request_line(self.name, self.settings, self.device, token, self.key).encode(), process)
            assert process.stdout is not None
            answer = read_answer(self.name, process.stdout)
            if answer is None:
                raise RewardError(describe_end(self.name, process.wait()))
            serving = Serving(number, process.pid, answer["url"], token)
            temporary = self.folder / "server.json.new"
            temporary.touch(0o600)
            temporary.write_text(json.dumps(asdict(serving)))
            temporary.replace(self.folder / "server.json")
            return serving
        except BaseException:
            self._kill(process.pid)
            raise
        finally:
            self.starting = False

    def _send(self, line: bytes, process: "subprocess.Popen[str]") -> None:
        while line and process.poll() is None:
            try:
                line = line[os.write(self.life, line) :]
            except BlockingIOError:
                time.sleep(POLL)

    def _kill(self, pid: int) -> None:
        """Kill a server and the processes that it started, and wait until it has ended."""
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        self._wait(pid, STOP)

    def _wait(self, pid: int, seconds: float) -> bool:
        """Wait for the end of a server, which may be another rank's child; tell whether it has ended."""
        deadline = time.monotonic() + seconds
        while not self._has_ended(pid):
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL)
        return True

    def _has_ended(self, pid: int) -> bool:
        if self.child is not None and self.child.pid == pid:
            return self.child.poll() is not None
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    def stop(self) -> None:
        """Leave the server; the last rank to do so waits for its end, or kills it, and removes the folder."""
        if self.closed.is_set():
            return
        now = self._read()
        if self._leave():
            pid = self.pid if now is None else now.pid
            if not self._wait(pid, STOP):
                self._kill(pid)
            shutil.rmtree(self.folder, ignore_errors=True)

    def _leave(self) -> bool:
        """Use the server no longer, end one that is just starting, and tell whether no other rank is left."""
        self.closed.set()
        if self.starting and self.child is not None:
            self._kill(self.child.pid)
        self._close_output()
        os.close(self.life)
        if self.served is not None:
            self.served.close()
        fcntl.flock(self.locks["members"], fcntl.LOCK_UN)
        try:
            fcntl.flock(self.locks["members"], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _close_output(self) -> None:
        if self.child is not None and self.child.stdout is not None and not self.starting:
            self.child.stdout.close()
