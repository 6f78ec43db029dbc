"""Read each folder of a model once per process, for hundreds of policies."""

import copy
import io
import pickle
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor

_read = DiffusionPipeline.from_pretrained.__func__  # type: ignore[attr-defined]
_made: dict[Any, "Copies"] = {}


def remember_pipelines() -> None:
    """Let `DiffusionPipeline.from_pretrained` return copies of what it made of the same files before.

    A copy takes a tenth of the time. Tests of families load pipelines of their own classes, from files.
    """
    DiffusionPipeline.from_pretrained = classmethod(_load)  # type: ignore[assignment]


def _load(kind: Any, path: str, **arguments: Any) -> Any:
    folder = Path(path)
    if kind is not DiffusionPipeline or not folder.is_dir():
        return _read(kind, path, **arguments)
    # Tokenizers are made of the same files.
    others = {name: value for name, value in arguments.items() if not name.startswith("tokenizer")}
    key = path, _list_files(folder), frozenset(others.items())
    if key not in _made:
        if len(_made) == 8:
            _made.clear()
        _made[key] = Copies(_read(kind, path, **arguments))
    return _made[key].make()


class Copies(pickle.Pickler):
    """Deep copies of an object, which pickle makes in a third of the time once it is written."""

    def __init__(self, original: Any) -> None:
        self._written, self._tensors = io.BytesIO(), dict[int, Tensor]()
        super().__init__(self._written, pickle.HIGHEST_PROTOCOL)
        self.dump(original)
        self.clear_memo()

    def persistent_id(self, part: Any) -> int | None:
        """Keep tensors out of what is written."""
        if not isinstance(part, Tensor):
            return None
        self._tensors[id(part)] = part
        return id(part)

    def make(self) -> Any:
        tensors = copy.deepcopy(self._tensors)
        reader = pickle.Unpickler(io.BytesIO(self._written.getbuffer()))
        reader.persistent_load = tensors.__getitem__  # type: ignore[method-assign]
        return reader.load()


def _list_files(folder: Path) -> tuple[tuple[Path, int, int], ...]:
    """Return all that tells of a change: names, sizes and times."""
    files = [(file, file.stat()) for file in sorted(folder.rglob("*"))]
    return tuple((file, status.st_size, status.st_mtime_ns) for file, status in files)
