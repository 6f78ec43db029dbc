"""Guard the import, build and calls of plugins, so that what they change does not reach the run.

Settings of the process and of the thread are read before and restored after, and a warning names the reward
that changed them. Several rewards may be called at once while the main thread trains. Settings of the process
are therefore read while no reward runs, so that the values are the run's own, and are restored whenever a
reward has finished. Standard output, signal handlers and other settings that can only be examined while
nothing else runs are guarded when a plugin is imported and built in the main thread.
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
SHOWN = 120  # longest values, in characters, that a message shows


class Stage(Enum):
    """The work that a plugin does; the values are verbs for messages."""

    IMPORT = "imported"
    BUILD = "built"
    CALL = "called"


@dataclass
class Guard:
    """The guard of one reward; `left` describes, by name, the settings that the reward left changed."""

    name: str
    left: dict[str, str] = field(default_factory=dict)

    def run(self, stage: Stage, work: Callable[[], T]) -> T:
        """Let the plugin work and return its result; a process that it forks ends with the work.

        Raises:
            Exception: whatever the plugin raises; RuntimeError for other exceptions, such as SystemExit.
            KeyboardInterrupt: Ctrl+C was pressed.
        """
        quiet = stage is not Stage.CALL and threading.current_thread() is threading.main_thread()
        process, report = os.getpid(), HandlerReport()
        changes: dict[str, str] = {}
        try:
            with ExitStack() as stack:
                stack.enter_context(_AT_WORK.guard_process(self.name, stage, changes))
                if quiet:
                    stack.enter_context(_guard_quiet_settings(changes))
                    report = stack.enter_context(preserved_handlers())
                stack.enter_context(_guard_thread(changes))
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
            self._warn(stage, changes)

    def _warn(self, stage: Stage, changes: dict[str, str]) -> None:
        new = {key: text for key, text in changes.items() if key not in self.left}
        self.left |= new
        if new:
            log.warning(
                "reward %s, when it was %s, changed %s. This belongs to the whole process and was put back. "
                "Mend the plugin, or give the reward a process of its own: isolated: true among its settings",
                self.name,
                stage.value,
                ", ".join(new.values()),
            )


@dataclass
class AtWork:
    """The rewards that are working, and the state of the process before the first of them began.

    `run_streams` are the random streams as the run left them, `start_streams` those that the first reward
    began with, and `call_streams` those that the next call continues; None until a call has drawn from them.
    """

    lock: threading.RLock = field(default_factory=threading.RLock)
    working: list[tuple[str, Stage]] = field(default_factory=list)
    before: list[tuple["Setting", Any]] = field(default_factory=list)
    run_streams: "RandomState | None" = None
    start_streams: "RandomState | None" = None
    call_streams: "RandomState | None" = None

    @contextmanager
    def guard_process(self, name: str, stage: Stage, changes: dict[str, str]) -> Iterator[None]:
        """Guard the settings of the process during a reward's work; describe what it changed in `changes`.

        The settings are read when no other reward is working.
        """
        from marble_cli.rewards.settings import PROCESS

        with self.lock:
            if not self.working:
                self.before = _read_settings(PROCESS)
                self._enter_streams(stage)
            self.working.append((name, stage))
        try:
            yield
        finally:
            with self.lock:
                self.working.remove((name, stage))
                # Loading a model may change settings for a while.
                if not any(other is Stage.BUILD for _, other in self.working):
                    others = " or ".join(sorted({other for other, _ in self.working} - {name}))
                    restored = _restore_settings(self.before)
                    changes |= {
                        key: f"{text} (or {others} did)" if others else text for key, text in restored.items()
                    }
                if not self.working:
                    changes |= self._leave_streams(stage)

    def _enter_streams(self, stage: Stage) -> None:
        from marble_cli.rewards.streams import RandomState

        self.run_streams = self.start_streams = RandomState.read(gpus=stage is not Stage.CALL)
        if stage is Stage.CALL and self.call_streams is not None:
            self.call_streams.write()
            self.start_streams = self.call_streams

    def _leave_streams(self, stage: Stage) -> dict[str, str]:
        """Restore the run's random streams; those of calls continue at the next call.

        Drawing from torch's stream is not reported, because building any network does, nor drawing in an
        import, because common packages do; seeding is.
        """
        from marble_cli.rewards.streams import RandomState

        assert self.run_streams is not None
        assert self.start_streams is not None
        end = RandomState.read(gpus=bool(self.run_streams.gpus))
        moved = self.start_streams.moved(end)
        if moved or self.start_streams is not self.run_streams:
            self.run_streams.write()
        if moved and stage is Stage.CALL:
            self.call_streams = end
        passed = ["torch", *(self.start_streams.continued(end) if moved and stage is Stage.IMPORT else ())]
        reported = [] if stage is Stage.CALL else [name for name in moved if name not in passed]
        reported += ["torch"] if self.start_streams.seed != end.seed else []
        return {f"random {name}": f"{name}'s random numbers" for name in reported}


_AT_WORK = AtWork()


def is_plugin_at_work() -> bool:
    """Tell whether a plugin is working in this process, such as in a call that was abandoned."""
    return bool(_AT_WORK.working)


@contextmanager
def _guard_quiet_settings(changes: dict[str, str]) -> Iterator[None]:
    """Guard settings that can only be examined while nothing else runs in the process."""
    from marble_cli.rewards.settings import QUIET

    before = _read_settings(QUIET)
    try:
        with reserved():
            yield
    finally:
        changes |= _restore_settings(before)


@contextmanager
def _guard_thread(changes: dict[str, str]) -> Iterator[None]:
    """Guard the settings of this thread."""
    import torch

    from marble_cli.rewards.settings import THREAD

    before, gradients = _read_settings(THREAD), torch.is_grad_enabled()
    with torch.inference_mode(torch.is_inference_mode_enabled()):  # ends a mode that is left on inside
        torch.set_grad_enabled(gradients)
        try:
            yield
        finally:
            changes |= _restore_settings(before)


def _read_settings(settings: "Sequence[Setting]") -> "list[tuple[Setting, Any]]":
    return [(setting, setting.read()) for setting in settings]


def _restore_settings(values: "list[tuple[Setting, Any]]") -> dict[str, str]:
    """Write back the settings that have changed; return a description of each change by name."""
    changed = {}
    for setting, before in values:
        now = setting.read()
        if setting.same(before, now):
            continue
        change = f"{before} -> {now}"
        changed[setting.name] = f"{setting.name} ({change})" if len(change) < SHOWN else setting.name
        try:
            setting.write(before)
        except Exception as error:  # the other settings can still be restored
            changed[setting.name] += f", which cannot be put back ({error})"
    return changed


def _end_child() -> NoReturn:
    """End a forked process at the end of the plugin's code, with the exit code of the current exception."""
    error = sys.exception()
    if error is None or (isinstance(error, SystemExit) and error.code is None):
        os._exit(0)
    if isinstance(error, SystemExit):
        os._exit(error.code if isinstance(error.code, int) else 1)
    traceback.print_exception(error)
    os._exit(1)
