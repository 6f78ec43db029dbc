"""Share what is costly to make among the workers of one test run."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from filelock import FileLock

from tests.fork_server import ForkServer, start_server


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that `make` fills in the first worker that asks for it; the others wait for it.

    Where `make` fails, the next worker that asks tries again.
    """
    root = _root(factory)
    folder, ready = root / name, root / f"{name}.ready"
    with FileLock(root / f"{name}.lock"):
        if not ready.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            ready.touch()
    return folder


def shared_server(
    factory: pytest.TempPathFactory, name: str, python: Path | str, environ: Mapping[str, str]
) -> ForkServer:
    """Return the server of forks that the first worker starts; it ends when all workers have left it."""
    folder = _root(factory) / name
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        try:
            return ForkServer(folder)
        except OSError:
            return start_server(python, environ, folder)


def _root(factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the whole test run, in which a worker's own lies."""
    root = factory.getbasetemp()
    return root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
