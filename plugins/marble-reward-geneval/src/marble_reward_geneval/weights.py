"""Load models by folder or hub repository, quietly, with messages that name what was expected."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils import logging


def locate(source: str) -> str:
    """The folder or hub repository that `source` means.

    Raises:
        OSError: it is a path and there is no such folder.
    """
    if Path(source).expanduser().is_absolute() or source.startswith("."):
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise OSError(f"there is no folder {str(folder)!r}")
        return str(folder)
    return source


@contextmanager
def loading(source: str, expected: str) -> Iterator[None]:
    """Load weights within: no progress bar, and whatever goes wrong is an OSError that says what was expected."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    except Exception as error:  # the hub's client raises many kinds
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise OSError(
            f"the model {source!r} cannot be loaded: {reason} Expected {expected}. Where the hub cannot be reached, "
            "fetch it elsewhere with `hf download` and give the folder."
        ) from error
    finally:
        if shown:
            logging.enable_progress_bar()


def check_complete(model: nn.Module, report: Mapping[str, Any]) -> None:
    """No parameter was left as it was drawn at random.

    Args:
        model: as `from_pretrained` made it.
        report: the loading info that it gave with it.

    Raises:
        ValueError: some were.
    """
    random = sorted({name for name, _ in model.named_parameters()} & set(report["missing_keys"]))
    if random:
        raise ValueError(f"its weights lack {len(random)} parameters, {random[0]} among them.")
