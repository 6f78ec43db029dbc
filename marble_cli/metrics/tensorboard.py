"""Mirror the metrics to TensorBoard: event files in the run's folder, which `tensorboard --logdir` shows."""

import json
from numbers import Real
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from marble_cli.metrics.jsonl import read_rows
from marble_cli.metrics.tracker import TrackedRun, named_by_phase


class TensorBoard:
    """One start of a run in `<folder>/tensorboard`; all starts together are one run of TensorBoard."""

    def __init__(self, run: TrackedRun) -> None:
        # TensorBoard drops what earlier files hold from this step on: these rows are written again.
        self.writer: Any = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.first)
        settings = json.dumps(run.config, indent=1, default=str)
        self.writer.add_text("config", "\t" + settings.replace("\n", "\n\t"), run.step)
        for row in read_rows(run.folder / "metrics.jsonl"):
            if row["step"] >= run.first:  # the training of a step whose evaluation is void
                self.write(row)
        self.writer.flush()

    def write(self, metrics: dict[str, Any]) -> None:
        for name, value in named_by_phase(metrics).items():
            if isinstance(value, Real):
                self.writer.add_scalar(name, float(value), metrics["step"])
        self.writer.flush()  # a kill loses no finished step

    def images(self, step: int, images: Tensor, captions: list[str]) -> None:
        for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
            self.writer.add_image(f"samples/{index:02d}", image, step)
            self.writer.add_text(f"samples/{index:02d}", caption, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
