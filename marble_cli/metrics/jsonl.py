"""`metrics.jsonl`: one flat JSON object a line, appended and flushed."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends to `path`; a figure that is not finite becomes a missing key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream = path.open("a", encoding="utf-8")

    def write(self, metrics: Mapping[str, Any]) -> None:
        row = {key: value for key, value in metrics.items() if not _not_finite(value)}
        self._stream.write(json.dumps(row) + "\n")
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()


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
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    os.replace(temporary, path)
