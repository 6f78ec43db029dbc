"""Write and read `metrics.jsonl`: one flat JSON object per line, flushed after every line."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marble_cli.errors import RequestError
from marble_cli.files import AppendedFile, write_whole

Row = dict[str, Any]


class MetricsLog:
    """Append rows to `path`.

    Raises:
        StorageError: a row does not fit on the disk; no part of the row stays in the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = AppendedFile(path)

    def write(self, metrics: Mapping[str, Any]) -> None:
        self._file.append(json.dumps(metrics) + "\n")

    def close(self) -> None:
        self._file.close()


def finite(metrics: Mapping[str, Any]) -> Row:
    """Return a row without the values that are not finite: a missing figure is a missing key."""
    return {k: value for k, value in metrics.items() if not isinstance(value, float) or math.isfinite(value)}


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a metrics file up to the first damaged line; a kill may truncate the last line.

    A missing file has no rows.
    """
    rows: list[Row] = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def read_checked_rows(path: Path) -> tuple[list[Row], bool]:
    """Read the rows of a metrics file; also tell whether the last line is truncated, as a kill leaves it.

    Raises:
        RequestError: another line is damaged.
    """
    rows: list[Row] = []
    lines = path.read_bytes().strip().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line, parse_constant=lambda _: None)  # NaN and infinities are no figures
        except ValueError:  # not JSON, or not even text
            row = None
            if number == len(lines):
                return rows, True
        if not isinstance(row, dict) or type(row.get("step")) is not int or row.get("phase") is None:
            raise RequestError(
                f"{path}, line {number}: expected a JSON object with step, a whole number, and phase. "
                "Restore the file or remove the line."
            )
        rows.append({key: value for key, value in row.items() if value is not None})
    return rows, False


def truncate_after(path: Path, step: int, *, evaluated: bool = True) -> None:
    """Drop the rows after `step` atomically; a resumed run writes them again.

    Args:
        path: the metrics file.
        step: the step that the run resumes from.
        evaluated: whether its evaluation is kept too; else the run repeats it.

    Raises:
        RequestError: a line before the last is damaged.
    """
    if not path.is_file():
        return
    kept = [row for row in read_checked_rows(path)[0] if row["step"] <= step]
    if not evaluated:
        kept = [row for row in kept if row["step"] < step or row["phase"] != "eval"]
    write_whole(path, "".join(json.dumps(row) + "\n" for row in kept))
