"""Say what could not be loaded, what was expected and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def loading(what: str, expected: str, remedy: str) -> Iterator[None]:
    """Turn whatever is raised within into one message; show no progress bar.

    Raises:
        OSError: for whatever is raised within.
    """
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    except Exception as error:  # the hub's client raises many kinds
        reason = (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
        raise OSError(f"{what} cannot be loaded: {reason}. Expected {expected}. {remedy}") from error
    finally:
        if shown:
            logging.enable_progress_bar()
