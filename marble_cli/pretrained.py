"""Load pretrained weights for rewards: a folder or a repository of the Hugging Face hub, safetensors only.

Plugins may import this module, as those that come with marble do.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

HUB = "Where the hub cannot be reached, fetch the files elsewhere with `hf download` and name their folder."


def resolve_source(model: str, remedy: str = HUB) -> str:
    """Return the folder or the hub repository that an option names.

    A value that is absolute, or begins with `.` or `~`, is a folder; any other is left to transformers.

    Raises:
        OSError: the value is written as a path, and there is no such folder. `remedy` ends the message.
    """
    folder = Path(model).expanduser()
    if not folder.is_absolute() and not model.startswith("."):
        return model
    if not folder.is_dir():
        raise OSError(f"there is no folder {str(folder)!r} to load a model from. {remedy}")
    return str(folder)


@contextmanager
def loading(model: str, expected: str, remedy: str = HUB) -> Iterator[None]:
    """Load a model inside the block: without progress bars, and with one message for every kind of failure.

    Args:
        model: the model and its source, to begin the message.
        expected: the files or the weights that should be there.
        remedy: the end of the message.

    Raises:
        OSError: anything was raised inside.
    """
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    except Exception as error:  # the hub's client raises many kinds
        reason = (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
        raise OSError(f"{model} cannot be loaded: {reason}. Expected {expected}. {remedy}") from error
    finally:
        if shown:
            logging.enable_progress_bar()


def check_complete(model: "nn.Module", report: Mapping[str, Any]) -> None:
    """Refuse a model with parameters that its files lack; transformers draws those at random.

    Args:
        model: as `from_pretrained` returned it.
        report: the loading info that `output_loading_info=True` returns with it.

    Raises:
        ValueError: parameters are missing.
    """
    names = {name for name, _ in model.named_parameters()}
    missing = sorted(names & set(report["missing_keys"]))
    if missing:
        raise ValueError(f"its weights lack {len(missing)} parameters, {missing[0]} among them")


def check_tensors(tensors: "Mapping[str, Tensor]", expected: "Mapping[str, Tensor]") -> None:
    """Compare names and shapes with the expected ones; further tensors are ignored.

    Raises:
        ValueError: a tensor is missing or has another shape.
    """
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise ValueError(f"it lacks {len(missing)} of {len(expected)} tensors, {missing[0]} among them")
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape:
            raise ValueError(f"{name} has shape {[*tensors[name].shape]}, not {[*tensor.shape]}")
