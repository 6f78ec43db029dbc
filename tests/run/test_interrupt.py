"""Signals stop a run, and their handlers are restored afterwards."""

import os
import runpy
import signal
import sys
from contextlib import nullcontext
from types import ModuleType

import pytest

from marble_cli.interrupts import Interrupt, interruptible


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)]
)
def test_signal_sets_the_exit_code(number: signal.Signals, code: int) -> None:
    with Interrupt() as interrupt:
        assert interrupt.exit_code is None
        os.kill(os.getpid(), number)
        assert interrupt.exit_code == code


def test_second_ctrl_c_raises_keyboard_interrupt() -> None:
    def twice() -> None:
        with Interrupt():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        twice()


def test_an_error_in_the_place_of_ctrl_c_is_ctrl_c() -> None:
    def swallowed(*before: int) -> None:
        """As C++ does between Python and Python, and a plugin that catches everything."""
        for number in before:
            os.kill(os.getpid(), number)
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("cannot be read") from None

    for in_a_run in (False, True):
        with pytest.raises(KeyboardInterrupt), interruptible(), Interrupt() if in_a_run else nullcontext():
            swallowed(*[signal.SIGINT] * in_a_run)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(ValueError, match="cannot be read"), interruptible():  # the one before is forgotten
        raise ValueError("cannot be read")


def test_ctrl_c_while_modules_are_imported_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(name: str) -> None:
        raise KeyboardInterrupt

    module = ModuleType("marble_cli.cli.app")
    monkeypatch.setattr(module, "__getattr__", pressed, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(SystemExit) as end:
        runpy.run_module("marble_cli")
    assert end.value.code == 130
    assert end.value.__suppress_context__


def test_second_sigterm_is_ignored() -> None:
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.exit_code == 143


def test_exit_restores_previous_handlers() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with Interrupt():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before
