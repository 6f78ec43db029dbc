"""Read from a run's log when it started, what it repeated, and what it warned of."""

import re
from dataclasses import dataclass
from pathlib import Path

from marble_cli.redaction import redact

LINES = 40  # warnings and errors that are shown at most
LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ ([A-Z]+) (.*)")
START = re.compile(r"marble \S+, after step (\d+)(?: of (\d+))?")
RETRY = re.compile(r"reward (.+), retry \d+ of \d+")


@dataclass(frozen=True)
class Journal:
    """What log.txt tells.

    Attributes:
        exists: whether there is a log.
        starts: the step after which each start of the run continued; the first is a beginning.
        planned: the number of steps that the last start was to reach; None in a log of an earlier version.
        retries: the number of repeated calls by reward.
        warnings: the number of warnings and errors.
        messages: the last of them, (time, level, text) each.
        failure: the error that ended the run, if the last start ended with one.
    """

    exists: bool
    starts: tuple[int, ...] = ()
    planned: int | None = None
    retries: tuple[tuple[str, int], ...] = ()
    warnings: int = 0
    messages: tuple[tuple[str, str, str], ...] = ()
    failure: str | None = None


def read_journal(folder: Path) -> Journal:
    """Read the log of a run; lines that marble did not write, such as those of a traceback, are ignored."""
    try:
        text = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Journal(False)
    lines = [match.groups() for line in text.splitlines() if (match := LINE.match(line))]
    starts, planned, failure, messages = [], None, None, []
    retries: dict[str, int] = {}
    for time, level, message in lines:
        if start := START.match(message):
            starts.append(int(start[1]))
            planned = int(start[2]) if start[2] else None
            failure = None
        elif retry := RETRY.match(message):
            retries[retry[1]] = retries.get(retry[1], 0) + 1
        elif level in ("WARNING", "ERROR", "CRITICAL"):
            plain = redact(message).replace(f"{folder.resolve()}/", "")
            failure = plain if level == "ERROR" else failure
            messages.append((time, level.lower(), plain))
    return Journal(
        True,
        tuple(starts),
        planned,
        tuple(retries.items()),
        len(messages),
        tuple(messages[-LINES:]),
        failure,
    )
