"""Plugins of a test's own, written as the modules that they are."""

import itertools
import logging
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from marble_cli.plugins import installed

Write = Callable[..., str]
NUMBERS = itertools.count()


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Write]:
    """A function that writes and installs a module with the reward `Reward`, and returns its name.

    `write(imported="...", built="...", called="...")` makes it run statements when it is imported, built and
    called; `write(source="...")` writes the source as it is.
    """
    monkeypatch.syspath_prepend(str(tmp_path))
    entries = dict(installed())
    for place in ("config.compose", "config.validate", "rewards.registry"):
        monkeypatch.setattr(f"marble_cli.{place}.installed", lambda: entries)

    def make(source: str | None = None, *, imported: str = "", built: str = "", called: str = "") -> str:
        name = f"ill_mannered_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(source or module(imported, built, called))
        entries[name] = EntryPoint(name, f"{name}:Reward", "marble.rewards")
        return name

    yield make
    for name in entries:
        sys.modules.pop(name, None)


def module(imported: str, built: str, called: str) -> str:
    def indented(code: str) -> str:
        return textwrap.indent(textwrap.dedent(code).strip() or "pass", " " * 8)

    return f'''
import ctypes, gc, locale, logging, multiprocessing, os, random, signal
import socket, subprocess, sys, threading, time, warnings
import numpy as np
import torch

{textwrap.dedent(imported).strip()}

class Reward:
    """A reward with bad manners."""

    license = "Apache-2.0"

    def __init__(self):
{indented(built)}

    def __call__(self, images, prompts):
{indented(called)}
        return [1.0] * len(prompts)
'''


@pytest.fixture(autouse=True)
def _marble_logs(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests may have taken the `marble` logger's lines elsewhere."""
    monkeypatch.setattr(logging.getLogger("marble"), "propagate", True)
    caplog.set_level(logging.WARNING, "marble")
