"""Read each folder of a model once per process, for hundreds of policies."""

import copy
from pathlib import Path
from typing import Any

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
    return copy.deepcopy(_made[key])


def _list_files(folder: Path) -> tuple[tuple[Path, int, int], ...]:
    """Return all that tells of a change: names, sizes and times."""
    files = [(file, file.stat()) for file in sorted(folder.rglob("*"))]
    return tuple((file, status.st_size, status.st_mtime_ns) for file, status in files)
