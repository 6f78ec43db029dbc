"""Read each folder of a model once per process, for hundreds of policies."""

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

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
        if len(_made) == 100:
            _made.clear()
        _made[key] = Copies(_read(kind, path, **arguments))
    return _made[key].make()


class Copies(pickle.Pickler):
    """Deep copies of a pipeline, which pickle makes in a third of the time once it is written.

    Copies share the VAE, which nothing trains, unless there is a GPU, to which only some of them may go.
    """

    def __init__(self, pipeline: Any) -> None:
        self._shared = None if torch.cuda.is_available() else pipeline.vae
        self._written, self._tensors = io.BytesIO(), dict[int, torch.Tensor]()
        super().__init__(self._written, pickle.HIGHEST_PROTOCOL)
        self.dump(pipeline)
        self.clear_memo()

    def persistent_id(self, part: Any) -> int | None:
        """Keep tensors, and what copies share, out of what is written."""
        if isinstance(part, torch.Tensor):
            self._tensors[id(part)] = part
        elif part is not self._shared or part is None:
            return None
        return id(part)

    def make(self) -> Any:
        parts = {**copy.deepcopy(self._tensors), id(self._shared): self._shared}
        reader = pickle.Unpickler(io.BytesIO(self._written.getbuffer()))
        reader.persistent_load = parts.__getitem__  # type: ignore[method-assign]
        return reader.load()


def _list_files(folder: Path) -> tuple[tuple[Path, int, int], ...]:
    """Return all that tells of a change: names, sizes and times."""
    files = [(file, file.stat()) for file in sorted(folder.rglob("*"))]
    return tuple((file, status.st_size, status.st_mtime_ns) for file, status in files)
