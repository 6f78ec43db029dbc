"""Mirror a run's records elsewhere: the contract of trackers, and a guard around those of a run.

An entry point of the group `marble.trackers` names a class or function. The main process calls it with a
`TrackedRun` whenever a run starts or resumes, and it returns a `Tracker`.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from marble_cli.errors import ConfigError
from marble_cli.plugins import trackers
from marble_cli.suggest import nearest

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("marble")


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker learns about a run when it starts.

    Attributes:
        folder: the run's folder. A tracker that writes files makes a folder of its own name in it.
        name: `run.name`.
        config: the resolved configuration as plain JSON values, with references in place of secrets.
        step: the last finished step. Above 0, the run resumes: rows of later steps are void and come again.
        id: the id that the run's checkpoint keeps of this tracker; so far of W&B's run alone.
        evaluated: whether the evaluation of `step` stays. Else it is void, if there was one, and comes now.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    step: int
    id: str | None = None
    evaluated: bool = True

    @property
    def first(self) -> int:
        """The first step with a row that is void or yet to come."""
        return self.step + self.evaluated if self.step else 0


class Tracker(Protocol):
    """Take the records of one start of a run; whatever it raises ends the tracker and never the run."""

    def write(self, metrics: dict[str, Any]) -> None:
        """Record a row, as metrics.jsonl has it: `step`, `phase` (train or eval) and figures by name."""

    def images(self, step: int, images: "Tensor", captions: list[str]) -> None:
        """Record pictures uint8 [N, 3, H, W] of an evaluation with their N prompts.

        Pictures that are smaller than others are on white. Of videos they are strips of frames; a tracker
        that also has a method `videos(step, files, captions)` is given their MP4 files after that.
        """

    def close(self) -> None:
        """Send what is left; the run has ended, failed or been stopped."""


def named_by_phase(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a row by name, those of an evaluation below `eval/`."""
    prefix = "" if metrics["phase"] == "train" else "eval/"
    return {prefix + key: value for key, value in metrics.items() if key not in ("phase", "step")}


def load_tracker(name: str) -> Callable[[TrackedRun], Tracker]:
    """Import the class or function of the tracker `name`.

    Raises:
        ConfigError: there is no such tracker, or its library is not installed.
    """
    known = trackers()
    if name not in known:
        raise ConfigError(
            f"logging.trackers: there is no tracker {name!r} in this environment{nearest(name, known)}"
        )
    try:
        loaded: Callable[[TrackedRun], Tracker] = known[name].load()
        return loaded
    except Exception as error:  # importing a plugin may raise anything
        raise ConfigError(
            f"logging.trackers: {name} cannot be imported: {error}. Install what it needs (of marble's own "
            f"trackers: pip install 'marble-cli[{name}]'), or leave it out."
        ) from error


class Trackers:
    """The trackers of one start of a run; one that raises is left out from then on, with a warning.

    Args:
        names: `logging.trackers`.
        run: what they learn about the run.
        ids: by name, the ids that the run's checkpoint keeps.
    """

    def __init__(self, names: Iterable[str], run: TrackedRun, ids: Mapping[str, str | None]) -> None:
        self._running: dict[str, Tracker] = {}
        for name in dict.fromkeys(names):
            with self._guarded(name):
                self._running[name] = load_tracker(name)(replace(run, id=ids.get(name)))

    def id(self, name: str) -> str | None:
        """Return the id that a later start needs to continue; None if the tracker has none or is left out."""
        found = getattr(self._running.get(name), "id", None)
        return None if found is None else str(found)

    def write(self, metrics: Mapping[str, Any]) -> None:
        self._each(lambda tracker: tracker.write(dict(metrics)))

    def images(self, step: int, images: "Tensor", captions: list[str]) -> None:
        self._each(lambda tracker: tracker.images(step, images, list(captions)))

    def videos(self, step: int, files: list[Path], captions: list[str]) -> None:
        """Give MP4 files of an evaluation, with their prompts, to the trackers that take videos."""

        def give(tracker: Any) -> None:
            if hasattr(tracker, "videos"):
                tracker.videos(step, list(files), list(captions))

        self._each(give)

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._running.items()):
            with self._guarded(name):
                call(tracker)

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except (Exception, SystemExit) as error:
            self._running.pop(name, None)
            reason = str(error).strip().split("\n")[0].rstrip(".")
            log.warning(
                "tracker %s failed and gets no more of this run (%s: %s); metrics.jsonl has everything",
                name,
                type(error).__name__,
                reason,
            )
