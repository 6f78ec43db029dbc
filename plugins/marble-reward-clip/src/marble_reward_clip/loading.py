"""Finding and reading models: a folder or a repository of the Hugging Face hub, safetensors only."""

import importlib.resources
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor
from transformers.utils import logging

HUB = "Where the hub cannot be reached, fetch the files elsewhere with `hf download` and name their folder."


def locate(model: str, remedy: str = HUB) -> str:
    """The folder or hub repository that `model` means; `tiny` is the CLIP model that marble carries.

    Raises:
        OSError: it is written as a path, and there is no such folder.
    """
    if model == "tiny":
        try:
            model = str(importlib.resources.files("marble_cli") / "assets" / "tiny" / "clip")
        except ModuleNotFoundError as error:
            raise OSError(
                "model='tiny' is the CLIP model that marble carries; marble is not installed"
            ) from error
    if Path(model).expanduser().is_absolute() or model.startswith("."):
        folder = Path(model).expanduser()
        if not folder.is_dir():
            raise OSError(f"there is no folder {str(folder)!r} to load a model from. {remedy}")
        return str(folder)
    return model


@contextmanager
def loading(what: str, expected: str, remedy: str = HUB) -> Iterator[None]:
    """Say what could not be loaded, what was expected and what to do; show no progress bar.

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


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Compare names and shapes; tensors that are not expected are left alone.

    Raises:
        ValueError: a tensor is missing or of another shape.
    """
    missing = [name for name in expected if name not in found]
    if missing:
        raise ValueError(f"it lacks {len(missing)} of {len(expected)} tensors, {missing[0]} among them")
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise ValueError(f"{name} has shape {[*found[name].shape]}, not {[*tensor.shape]}")
