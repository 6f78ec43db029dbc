"""Mirror the metrics to Trackio, on this machine or wherever its own variables say."""

from pathlib import Path
from typing import Any

import trackio
from torch import Tensor

from marble_cli.files import write_whole
from marble_cli.metrics.jsonl import read_rows
from marble_cli.metrics.tracker import TrackedRun, named_by_phase

PROJECT = "marble"
IDENTITY = "id.txt"  # in `<folder>/trackio`; the id of the run that the last start made


class Trackio:
    """One start of a run, as a run of the project `marble`; it replaces that of the start before.

    Trackio keeps every row that it is sent, and a resumed run repeats steps. So the rows until the checkpoint
    are sent again, from metrics.jsonl, with the grids of pictures in samples/.
    """

    def __init__(self, run: TrackedRun) -> None:
        identity = run.folder / "trackio" / IDENTITY
        if identity.is_file():
            _delete(identity.read_text(encoding="utf-8").strip())
        self.run: Any = trackio.init(
            PROJECT, name=run.name, config=run.config, embed=False, auto_log_gpu=False, auto_log_cpu=False
        )
        identity.parent.mkdir(exist_ok=True)
        write_whole(identity, f"{self.run.id}\n")
        for row in read_rows(run.folder / "metrics.jsonl"):
            self.write(row)
            picture = run.folder / "samples" / f"step-{row['step']:08d}.png"
            if row["phase"] == "eval" and picture.is_file():
                self._show(row["step"], "samples", picture)

    def write(self, metrics: dict[str, Any]) -> None:
        self.run.log(named_by_phase(metrics), step=metrics["step"])

    def images(self, step: int, images: Tensor, captions: list[str]) -> None:
        for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
            self._show(step, f"samples/{index:02d}", image.permute(1, 2, 0).numpy(), caption)

    def videos(self, step: int, files: list[Path], captions: list[str]) -> None:
        for index, (file, caption) in enumerate(zip(files, captions, strict=True)):
            self.run.log({f"videos/{index:02d}": trackio.Video(str(file), caption=caption)}, step=step)

    def _show(self, step: int, name: str, picture: Any, caption: str | None = None) -> None:
        given = str(picture) if isinstance(picture, Path) else picture
        self.run.log({name: trackio.Image(given, caption=caption)}, step=step)

    def close(self) -> None:
        self.run.finish()


def _delete(id: str) -> None:
    """Delete the run of an earlier start, if it is still there."""
    try:
        runs = list(trackio.Api().runs(PROJECT))
    except ValueError:  # no such project
        return
    for run in runs:
        if run.id == id:
            run.delete()
