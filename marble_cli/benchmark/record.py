"""Keep the scores of a target on a benchmark as they come, so that a killed command can go on.

The file's name holds a hash of everything that decides the scores. So a file never mixes two protocols,
models or versions, and a command that is given again finds what it has already.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marble_cli.errors import RequestError
from marble_cli.files import AppendedFile, writing
from marble_cli.metrics.jsonl import read_rows

AGAIN = "Free some space and give the same command again; it goes on from here."


@dataclass(frozen=True)
class Rows:
    """The scores of neighbouring prompts.

    Attributes:
        first: the place of the first of them.
        scores: by reward: of each prompt, the scores of its images, None where there is none.
        failed: by reward: the number of images on which it failed.
        seconds: that they took.
    """

    first: int
    scores: dict[str, list[list[float | None]]]
    failed: dict[str, int]
    seconds: float


class Record:
    """The rows that are known of one target on one benchmark, in a file that grows."""

    def __init__(self, folder: Path, benchmark: str, key: Mapping[str, Any]) -> None:
        """Read what an earlier command left.

        Args:
            folder: of the command's output.
            benchmark: the benchmark's plain name.
            key: everything that decides the scores, as JSON holds it.

        Raises:
            RequestError: the file is damaged.
        """
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self.path = folder / "scores" / f"{benchmark}-{digest[:16]}.jsonl"
        self.weights: str | None = None  # digest of the base model that drew them
        self.rows = dict[int, Rows]()
        rewards = key["benchmark"]["rewards"].keys()
        for line in read_rows(self.path):
            try:
                if "first" in line:
                    rows = Rows(**line)
                    self.rows[rows.first] = rows
                    known = rows.scores.keys() == rows.failed.keys() == rewards
                else:
                    self.weights, known = line["weights"], True
            except (TypeError, KeyError, AttributeError):
                known = False
            if not known:
                raise RequestError(
                    f"{self.path} is not what `marble bench` writes. Delete it; its images are drawn again."
                )

    def missing(self, firsts: Sequence[int]) -> list[int]:
        """Return the places whose rows are not known, or on which a reward failed."""
        return [place for place in firsts if place not in self.rows or any(self.rows[place].failed.values())]

    def forget(self, firsts: Sequence[int]) -> None:
        """Forget the rows of these places, which are drawn again; the file keeps them until then."""
        for place in firsts:
            self.rows.pop(place, None)

    def open(self, weights: str) -> AppendedFile:
        """Begin to add rows; the base model has this digest. A truncated line is cut off."""
        with writing(self.path, AGAIN):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_file():
                whole = self.path.read_bytes()
                os.truncate(self.path, whole.rfind(b"\n") + 1)
        file = AppendedFile(self.path, AGAIN)
        if self.weights is None:
            self.weights = weights
            file.append(json.dumps({"weights": weights}) + "\n")
        return file

    def add(self, file: AppendedFile, rows: Rows) -> None:
        """Add rows to the file that `open` returned."""
        file.append(json.dumps(vars(rows)) + "\n")
        self.rows[rows.first] = rows

    def scores(self, reward: str) -> list[list[float | None]]:
        """Return the scores of each prompt's images, in the order of the prompts."""
        return [images for place in sorted(self.rows) for images in self.rows[place].scores[reward]]

    def failed(self, reward: str) -> int:
        """Return the number of images on which a reward failed."""
        return sum(rows.failed[reward] for rows in self.rows.values())

    @property
    def seconds(self) -> float:
        """The seconds that drawing and scoring took."""
        return sum(rows.seconds for rows in self.rows.values())
