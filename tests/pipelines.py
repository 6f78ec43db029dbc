"""Read each folder of a model once per process, for hundreds of policies."""

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

_read = DiffusionPipeline.from_pretrained.__func__  # type: ignore[attr-defined]
_made: dict[Any, Any] = {}  # pipelines that nobody else has


def remember_pipelines() -> None:
    """Let `DiffusionPipeline.from_pretrained` return copies of what it made of the same files before.

    A copy takes a third of the time. Tests of families load pipelines of their own classes, from files.
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
        _made[key] = _read(kind, path, **arguments)
    return _copy(_made[key])


def _copy(pipeline: Any) -> Any:
    """Copy a pipeline in two thirds of the time: modules have ten ordered dictionaries each.

    Copies share the VAE, which nothing trains, unless there is a GPU, to which only some of them may go.
    """
    copiers: dict[type, Any] = copy._deepcopy_dispatch  # type: ignore[attr-defined]
    copiers[OrderedDict] = _copy_ordered
    shared = {} if torch.cuda.is_available() else {id(pipeline.vae): pipeline.vae}
    try:
        return copy.deepcopy(pipeline, shared)
    finally:
        del copiers[OrderedDict]


def _copy_ordered(given: OrderedDict[Any, Any], memo: dict[int, Any]) -> OrderedDict[Any, Any]:
    made = memo[id(given)] = OrderedDict[Any, Any]()
    for key, value in given.items():
        made[copy.deepcopy(key, memo)] = copy.deepcopy(value, memo)
    return made


def _list_files(folder: Path) -> tuple[tuple[Path, int, int], ...]:
    """Return all that tells of a change: names, sizes and times."""
    files = [(file, file.stat()) for file in sorted(folder.rglob("*"))]
    return tuple((file, status.st_size, status.st_mtime_ns) for file, status in files)
