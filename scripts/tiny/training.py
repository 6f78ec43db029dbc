"""The parts that all trainings of tiny models share: options, device, learning rate, update, progress bar."""

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
REPORT_EVERY = 100  # steps


def read_options(
    module: str, description: str | None, assets: Path, arguments: list[str]
) -> argparse.Namespace:
    """Read `output`, `seed` and `scale` from the command line of a script that makes an embedded model."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, default=assets, metavar="DIR", help="folder to write (the embedded model's)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of everything (%(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full plan, for a quick trial")
    return parser.parse_args(arguments)


class Track:
    """The steps of one training, shown as a progress bar with the loss."""

    def __init__(self, name: str, steps: int):
        self.bar = Progress(
            TextColumn("{task.description:<6}"),
            BarColumn(30),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
        )
        self.task = self.bar.add_task(name, total=steps, loss="")
        self.name, self.steps = name, steps

    def __iter__(self) -> Iterator[int]:
        began = time.time()
        with self.bar:
            for step in range(self.steps):
                yield step
                self.bar.advance(self.task)
        print(f"{self.name}: {self.steps} steps in {time.time() - began:.0f} s", flush=True)

    def show_loss(self, step: int, loss: Tensor) -> None:
        """Show the loss of every hundredth step and of the last."""
        if (step + 1) % REPORT_EVERY == 0 or step == self.steps - 1:
            self.bar.update(self.task, loss=f"loss {loss.item():.4f}")
            self.bar.console.print(f"{self.name} {step + 1}: {loss.item():.4f}")


class Updater:
    """AdamW with clipped gradients; its learning rate warms up linearly, then follows a cosine.

    The warm-up takes 5 % of the steps; the cosine ends at 2 % of the peak.
    """

    def __init__(self, model: torch.nn.Module, steps: int, **options: object) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), **options)  # type: ignore[arg-type]
        warm = max(1, steps // 20)
        self.rate = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda s: min((s + 1) / warm, 0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, s / steps)))),
        )

    def update(self, loss: Tensor) -> None:
        """Take one optimizer step on a loss."""
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.rate.step()


def normalised(images: Tensor) -> Tensor:
    """Convert uint8 [B, 3, H, W] to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1
