"""Record a run in the metrics file, trackers, the terminal, sample pictures and log.txt."""

import logging
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.logging import RichHandler
from torch import Tensor

from marble_cli import __version__
from marble_cli.config.references import without_secrets
from marble_cli.config.schema import RunConfig
from marble_cli.errors import StorageError
from marble_cli.evaluate.score import Evaluation, shown
from marble_cli.evaluate.verdict import base_scores
from marble_cli.files import AppendedFile
from marble_cli.metrics.jsonl import MetricsLog, finite, truncate_after
from marble_cli.metrics.samples import INDEX, Sample, folder_of, keep_samples, mp4_of
from marble_cli.metrics.terminal import TerminalView
from marble_cli.metrics.tracker import TrackedRun, Trackers
from marble_cli.redaction import RedactingFilter, redact
from marble_cli.run.evaluations import is_due
from marble_cli.run.state import Progress
from marble_cli.videos import find_mp4_problem


class LogFile(logging.Handler):
    """Write log.txt by complete lines.

    A line that does not fit on the disk is dropped with a warning; the terminal still shows it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.file, self.full = AppendedFile(path, "Until there is space, lines are shown here only."), False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.file.append(redact(self.format(record)) + "\n")
            self.full = False
        except StorageError as error:
            if not self.full:  # warn once, until there is space again
                self.full = True
                logging.getLogger("marble").warning("%s", error)

    def close(self) -> None:
        self.file.close()
        super().close()


class RunRecorder:
    """The `run.loop.Recorder` of a run; it records on the main rank only."""

    def __init__(self, config: RunConfig, folder: Path, progress: Progress, *, main: bool) -> None:
        self.config, self.folder, self.progress, self.main = config, folder, progress, main
        self.logger = logging.getLogger("marble")
        self.warned = False  # that MP4 files cannot be written
        # Messages for log.txt only: the terminal shows these in another form.
        self.journal = logging.getLogger("marble.journal")

    def __enter__(self) -> "RunRecorder":
        if self.main:
            metrics = self.folder / "metrics.jsonl"
            new = self.progress.step == 0 and self.progress.evaluated < 0  # also if evaluations are off
            due = new or is_due(self.config.trainer, self.progress)
            truncate_after(metrics, self.progress.step, evaluated=not due)
            self.metrics = MetricsLog(metrics)
            self.view = TerminalView(self.config.trainer.steps, self.progress.step)
            file = LogFile(self.folder / "log.txt")
            file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            screen = RichHandler(console=self.view.console, show_path=False, show_time=False)
            screen.addFilter(RedactingFilter())
            self.handlers = [file, screen]
            self.logger.setLevel(logging.INFO)
            self.outer, self.logger.handlers = self.logger.handlers, self.handlers
            self.journal.handlers, self.journal.propagate = [file], False
            steps = self.config.trainer.steps
            self.journal.info("marble %s, after step %d of %d", __version__, self.progress.step, steps)
            tree = without_secrets(self.config)
            run = TrackedRun(self.folder, self.config.run.name, tree, self.progress.step, evaluated=not due)
            ids = {"wandb": self.progress.wandb_id}
            self.trackers = Trackers(self.config.logging.trackers, run, ids)
            self.progress.wandb_id = self.trackers.id("wandb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.main:
            if error is not None:
                self.journal.error("%s: %s", type(error).__name__, error)
            self.view.close()
            self.trackers.close()
            self.metrics.close()
            self.logger.handlers, self.journal.handlers = self.outer, []
            for handler in self.handlers:
                handler.close()

    def stage(self, name: str, total: int) -> None:
        if self.main:
            self.view.stage(name, total)

    def advance(self, count: int) -> None:
        if self.main:
            self.view.advance(count)

    def message(self, text: str) -> None:
        if self.main:
            self.journal.info(text)
            self.view.message(redact(text))

    def record(self, metrics: dict[str, Any]) -> None:
        if self.main:
            metrics = finite(metrics)
            for sink in (self.metrics, self.trackers, self.view):
                sink.write(metrics)
            self.journal.info(self.view.line(metrics))

    def pictures(self, step: int, evaluation: Evaluation, *, first: bool) -> None:
        """Keep images of an evaluation with scores under samples/, and grids of them there and in trackers.

        The pictures that images were edited from are kept with them: above them in the grid, on their left in
        trackers.

        Args:
            step: the last finished step.
            evaluation: the evaluation.
            first: whether later evaluations are compared with this one.
        """
        every = self.config.logging.images_every
        if not self.main or not every:
            return
        from marble_cli.metrics import figures  # imports matplotlib

        folder, conditions = self.folder / "samples", evaluation.conditions
        samples, continues = _samples(evaluation), "The run continues without these pictures."
        index = folder_of(folder, step) / INDEX
        figures.try_to_draw(index, continues, lambda: keep_samples(folder, step, samples, first=first))
        if step % every:
            return
        file = folder / f"step-{step:08d}.png"

        def draw() -> None:
            folder.mkdir(exist_ok=True)
            before = [(figures.TO_EDIT, conditions)] if conditions else []
            rows = [*before, (f"step {step}", evaluation.images)]
            figures.image_grid(rows, evaluation.captions, file)

        figures.try_to_draw(file, continues, draw)
        some = figures.spread(len(evaluation.captions), figures.TILES)
        images = [
            torch.cat([part[i] for part in (conditions, evaluation.images) if part], dim=2) for i in some
        ]
        self.trackers.images(step, figures.on_white(images), [evaluation.captions[i] for i in some])
        if evaluation.videos:
            self._videos(step, evaluation, some)

    def _videos(self, step: int, evaluation: Evaluation, some: Sequence[int]) -> None:
        """Give the MP4 files of some shown videos to trackers, and warn once where none can be written."""
        if problem := find_mp4_problem():
            if not self.warned:
                self.logger.warning("videos are kept as strips of frames alone: %s", problem)
            self.warned = True
            return
        places, folder = shown(len(evaluation.prompts)), folder_of(self.folder / "samples", step)
        files = {i: file for i in some if (file := mp4_of(folder, places[i])).is_file()}
        if files:
            self.trackers.videos(step, [*files.values()], [evaluation.captions[i] for i in files])


def _samples(evaluation: Evaluation) -> list[Sample]:
    """Return the shown images of an evaluation, each with the scores and the condition that it has."""
    scores, prompts = base_scores(evaluation), evaluation.prompts
    per_prompt = evaluation.images_per_prompt  # the first image of each is shown
    conditions: Sequence[Tensor | None] = evaluation.conditions or [None] * len(evaluation.images)
    videos: Sequence[Tensor | None] = evaluation.videos or [None] * len(evaluation.images)
    return [
        Sample(
            index=index,
            prompt=prompts[index].text,
            source=prompts[index].source,
            scores={
                name: score for name, row in scores.items() if (score := row[index * per_prompt]) is not None
            },
            image=image.permute(1, 2, 0).numpy(),
            condition=None if condition is None else condition.permute(1, 2, 0).numpy(),
            video=None if frames is None or evaluation.fps is None else (frames, evaluation.fps),
        )
        for index, image, condition, frames in zip(
            shown(len(prompts)), evaluation.images, conditions, videos, strict=True
        )
    ]
