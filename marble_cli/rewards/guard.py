"""A guard around a plugin's import, build and calls: what it does there stays its own.

Settings of the process and of the thread are noted and put back, and the reward that changed them is named.
While rewards are called the main thread trains, and several may be called at once. Settings of the process are
therefore noted while no reward is at work, so that they are the host's own, and are put back whenever a reward
has done its work. Standard output, signal handlers and what else only a process in which nothing else goes on
lets one look at are guarded when a plugin is imported and built in the main thread.
"""

import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from marble_cli.interrupts import HandlerReport, preserved_handlers
from marble_cli.output import reserved

if TYPE_CHECKING:
    from marble_cli.rewards.settings import Setting
    from marble_cli.rewards.streams import RandomState

log = logging.getLogger("marble")

T = TypeVar("T")
SHOWN = 120  # characters of values that a message shows at most


class Stage(Enum):
    """What a plugin is asked to do; a value is the verb of messages."""

    IMPORT = "imported"
    BUILD = "built"
    CALL = "called"


@dataclass
class Guard:
    """The guard of one reward; `left` says of each setting, by name, how the reward left it behind changed."""

    name: str
    left: dict[str, str] = field(default_factory=dict)

    def run(self, stage: Stage, work: Callable[[], T]) -> T:
        """Have the plugin do its work and return what it gives; a process that it forks ends with the work.

        Raises:
            Exception: what the plugin raises; a RuntimeError for what is no Exception, such as SystemExit.
            KeyboardInterrupt: Ctrl+C was pressed.
        """
        quiet = stage is not Stage.CALL and threading.current_thread() is threading.main_thread()
        process, report = os.getpid(), HandlerReport()
        changes: dict[str, str] = {}
        try:
            with ExitStack() as stack:
                stack.enter_context(_AT_WORK.one_more(self.name, stage, changes))
                if quiet:
                    stack.enter_context(_quiet(changes))
                    report = stack.enter_context(preserved_handlers())
                stack.enter_context(_thread(changes))
                try:
                    return work()
                finally:
                    if os.getpid() != process:
                        _end_child()
        except Exception:
            raise
        except BaseException as error:
            if report.interrupted:
                raise
            raise RuntimeError(repr(error)) from error
        finally:
            if report.changed:
                changes["signals"] = f"the handling of signals ({', '.join(report.changed)})"
            self._tell(stage, changes)

    def _tell(self, stage: Stage, changes: dict[str, str]) -> None:
        new = {key: text for key, text in changes.items() if key not in self.left}
        self.left |= new
        if new:
            log.warning(
                "reward %s, when it was %s, changed %s. This belongs to the whole process and was put back. Mend "
                "the plugin, or give it a process of its own: rewards.%s.isolated=true",
                self.name, stage.value, ", ".join(new.values()), self.name,
            )  # fmt: skip


@dataclass
class AtWork:
    """The rewards that are at work now, and what the process was like before the first of them began."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    now: list[tuple[str, Stage]] = field(default_factory=list)
    before: list[tuple["Setting", Any]] = field(default_factory=list)
    host: "RandomState | None" = None
    began: "RandomState | None" = None  # where the streams were for the first of them
    called: "RandomState | None" = (
        None  # where they are for rewards that are called, once one has drawn from them
    )

    @contextmanager
    def one_more(self, name: str, stage: Stage, changes: dict[str, str]) -> Iterator[None]:
        """Note settings of the process if no other is at work; put back what was changed and say so in `changes`."""
        from marble_cli.rewards.settings import PROCESS

        with self.lock:
            if not self.now:
                self.before = _note(PROCESS)
                self._enter_streams(stage)
            self.now.append((name, stage))
        try:
            yield
        finally:
            with self.lock:
                self.now.remove((name, stage))
                if not any(
                    other is Stage.BUILD for _, other in self.now
                ):  # loading a model may change some for a while
                    beside = " or ".join(sorted({other for other, _ in self.now} - {name}))
                    found = _put_back(self.before)
                    changes |= {
                        key: f"{text} (or {beside} did)" if beside else text for key, text in found.items()
                    }
                if not self.now:
                    changes |= self._leave_streams(stage)

    def _enter_streams(self, stage: Stage) -> None:
        from marble_cli.rewards.streams import RandomState

        self.host = self.began = RandomState.read(gpus=stage is not Stage.CALL)
        if stage is Stage.CALL and self.called is not None:
            self.called.write()
            self.began = self.called

    def _leave_streams(self, stage: Stage) -> dict[str, str]:
        """Put the host's streams back to where they were; those of rewards that are called go on next time.

        To draw from torch's stream, as every network does that is built, is not reported; to seed it is.
        """
        from marble_cli.rewards.streams import RandomState

        assert self.host is not None
        assert self.began is not None
        ended = RandomState.read(gpus=bool(self.host.gpus))
        moved = self.began.moved(ended)
        if moved or self.began is not self.host:
            self.host.write()
        if moved and stage is Stage.CALL:
            self.called = ended
        told = [] if stage is Stage.CALL else [name for name in moved if name != "torch"]
        told += ["torch"] if self.began.seed != ended.seed else []
        return {f"random {name}": f"{name}'s random numbers" for name in told}


_AT_WORK = AtWork()


@contextmanager
def _quiet(changes: dict[str, str]) -> Iterator[None]:
    """Guard what only a process in which nothing else goes on lets one look at."""
    from marble_cli.rewards.settings import QUIET

    before = _note(QUIET)
    try:
        with reserved():
            yield
    finally:
        changes |= _put_back(before)


@contextmanager
def _thread(changes: dict[str, str]) -> Iterator[None]:
    """Guard the settings of this thread."""
    import torch

    from marble_cli.rewards.settings import THREAD

    before, gradients = _note(THREAD), torch.is_grad_enabled()
    with torch.inference_mode(torch.is_inference_mode_enabled()):  # ends whatever mode is left on within
        torch.set_grad_enabled(gradients)
        try:
            yield
        finally:
            changes |= _put_back(before)


def _note(settings: "Sequence[Setting]") -> "list[tuple[Setting, Any]]":
    return [(setting, setting.read()) for setting in settings]


def _put_back(noted: "list[tuple[Setting, Any]]") -> dict[str, str]:
    """Write settings that are no longer as noted; returns by name what was changed, in words."""
    changed = {}
    for setting, before in noted:
        now = setting.read()
        if setting.same(before, now):
            continue
        values = f"{before} -> {now}"
        changed[setting.name] = f"{setting.name} ({values})" if len(values) < SHOWN else setting.name
        try:
            setting.write(before)
        except Exception as error:  # torch, the system: whatever it is, the others can still be put back
            changed[setting.name] += f", which cannot be put back ({error})"
    return changed


def _end_child() -> NoReturn:
    """End a forked process that has come to the end of the plugin's code, as an exception under way says."""
    error = sys.exception()
    if error is None or (isinstance(error, SystemExit) and error.code is None):
        os._exit(0)
    if isinstance(error, SystemExit):
        os._exit(error.code if isinstance(error.code, int) else 1)
    traceback.print_exception(error)
    os._exit(1)
