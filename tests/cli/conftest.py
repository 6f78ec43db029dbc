"""The command line, run in this process as `main` runs it."""

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from marble_cli.cli.app import main


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def marble(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Outcome]]:
    """Run `marble` with arguments; returns exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "80")
    for library in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        monkeypatch.setenv(library, "error")  # as `main` would leave them set
    logger = logging.getLogger("marble")
    handlers = list(logger.handlers)

    def run(*arguments: object) -> Outcome:
        logger.handlers = []
        monkeypatch.setattr(sys, "argv", ["marble", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capfd.readouterr()
        code = stop.value.code
        return Outcome(code if isinstance(code, int) else 0, captured.out, captured.err)

    yield run
    logger.handlers = handlers
