"""Keep standard output for a command's answer, down to the file descriptor that C libraries write to."""

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
    """Keep standard output for what is written to the stream that this yields.

    Whatever else is printed within, by Python, a C library or another program, goes to standard error.
    """
    outer = sys.stdout
    if (
        outer is None or sys.stderr is None
    ):  # closed by whoever started the process: nothing can be kept apart
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
    """Reserve standard output for a command's answer, until the process has ended."""
    with reserved() as own:
        yield own
    atexit.unregister(_end)
    atexit.register(_end)  # the last to be registered comes first, before those of plugins


def _flush(stream: TextIO) -> None:
    """Write out what Python and the C library hold back."""
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
