"""`metrics.jsonl`: one flat JSON object a line, appended and flushed."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marble_cli.files import AppendedFile, write_whole


class MetricsLog:
    """Appends to `path`; a figure that is not finite becomes a missing key.

    Raises:
        StorageError: a row does not fit on the disk; nothing is left of it.
    """

    def __init__(self, path: Path) -> None:
        self._file = AppendedFile(path)

    def write(self, metrics: Mapping[str, Any]) -> None:
        row = {key: value for key, value in metrics.items() if not _not_finite(value)}
        self._file.append(json.dumps(row) + "\n")

    def close(self) -> None:
        self._file.close()


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a torn last line, as a kill leaves it, is left out."""
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def truncate_after(path: Path, step: int) -> None:
    """Drop the rows of steps after `step`, atomically: those a continued run will write again.

    Continuing after step 0 means starting over, so nothing is kept.
    """
    if not path.is_file():
        return
    kept = [row for row in read(path) if step > 0 and row["step"] <= step]
    write_whole(path, "".join(json.dumps(row) + "\n" for row in kept))
