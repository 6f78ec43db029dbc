"""Load pretrained weights for rewards: a folder or a repository of the Hugging Face hub, safetensors only.

`read_pickled` and `check_empty` are for commands that convert published weights once. Plugins may import this
module, as those that come with marble do; marble itself does not, because it imports transformers.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil
from transformers.utils import logging

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


def load_model(kind: Any, source: str, dtype: torch.dtype) -> Any:
    """Load a model of transformers in evaluation mode and without gradients.

    Args:
        kind: its class, such as `CLIPModel`.
        source: a folder or a hub repository.
        dtype: precision of the weights.

    Raises:
        Exception: of many kinds; see `loading`. A ValueError if the files lack parameters.
    """
    model, report = kind.from_pretrained(source, dtype=dtype, use_safetensors=True, output_loading_info=True)
    check_complete(model, report)
    return model.eval().requires_grad_(False)


def check_complete(model: nn.Module, report: Mapping[str, Any]) -> None:
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


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
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


def read_pickled(file: Path) -> Any:
    """Read a pickled file with torch's restricted unpickler: tensors and plain containers, nothing else.

    Raises:
        OSError: there is no such file.
        ValueError: it is no torch file, or holds more.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        # Its own message advises to let the file run code.
        raise ValueError("it is no torch file, or holds more than tensors") from error


def check_empty(folder: Path) -> None:
    """Refuse to write over anything.

    Raises:
        OSError: the folder is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OSError(f"{str(folder)!r} is not empty. Name a new folder.")


class TorchvisionCrop(CLIPImageProcessorPil):
    """Crops the centre as torchvision does, and so open_clip and OpenAI's CLIP.

    Half of an odd excess is rounded to an even number; transformers rounds it down.
    """

    def center_crop(self, image: NDArray[Any], size: Any, **more: Any) -> NDArray[Any]:  # type: ignore[override]
        """Crop an image [C, H, W] to `size`; transformers handles images that are smaller."""
        height, width = image.shape[-2:]
        if height < size.height or width < size.width:
            return super().center_crop(image, size, **more)
        top, left = round((height - size.height) / 2), round((width - size.width) / 2)
        return image[..., top : top + size.height, left : left + size.width]
