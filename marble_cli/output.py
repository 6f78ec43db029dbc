"""Reserve standard output for the result of a command, at the level of the file descriptor."""

import atexit
import ctypes
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


@contextmanager
def reserved() -> Iterator[TextIO]:
    """Reserve standard output for the yielded stream.

    Anything else printed inside the block by Python, a C library or a child process goes to standard error.
    """
    outer = sys.stdout
    # The parent process closed one of the two streams, so they cannot be separated.
    if outer is None or sys.stderr is None:
        with open(os.devnull, "w") as nowhere:
            yield outer or nowhere
        return
    _flush(outer)
    with os.fdopen(os.dup(1), "w", encoding=outer.encoding, errors=outer.errors) as own:
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        try:
            yield own if _is_descriptor_1(outer) else outer
        finally:
            _flush(sys.stdout)
            _flush(own)
            os.dup2(own.fileno(), 1)
            sys.stdout = outer


@contextmanager
def answering() -> Iterator[TextIO]:
    """Reserve standard output for a command's result until the process ends."""
    with reserved() as own:
        yield own
    atexit.unregister(_end)
    atexit.register(_end)  # handlers run in reverse order, so this one runs before those of plugins


def _flush(stream: TextIO) -> None:
    """Flush the buffers of Python and of the C library."""
    stream.flush()
    ctypes.CDLL(None).fflush(None)


def _is_descriptor_1(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 1
    except (AttributeError, io.UnsupportedOperation):  # a stream of a test or notebook
        return False


def _end() -> None:
    if sys.stdout is not None and sys.stderr is not None:
        _flush(sys.stdout)
        os.dup2(2, 1)
