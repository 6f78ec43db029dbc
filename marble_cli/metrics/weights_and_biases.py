"""Weights & Biases: a mirror of the metrics that never stops a run."""

import logging
import netrc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from marble_cli.config.schema import Wandb, WandbMode

log = logging.getLogger("marble")


def key_configured() -> bool:
    """Whether an API key is at hand, in the environment or in the user's netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return "api.wandb.ai" in netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        return False


class WandbRun:
    """One W&B run under <folder>/wandb; without a key it is kept offline, for `wandb sync` later."""

    def __init__(
        self, settings: Wandb, folder: Path, name: str, config: dict[str, Any], run_id: str | None
    ) -> None:
        self.run: Any = None
        if settings.mode is WandbMode.disabled:
            return
        mode = settings.mode.value
        if settings.mode is WandbMode.auto:
            mode = "online" if key_configured() else "offline"
        import wandb

        try:
            self.run = wandb.init(
                project=settings.project, entity=settings.entity, name=name, dir=str(folder), config=config,
                mode=mode, id=run_id, resume="allow" if run_id and mode == "online" else None,
                settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True),
            )  # fmt: skip
        except Exception as error:  # any trouble with the service must leave the training alone
            log.warning("W&B could not be started (%s); the run goes on without it", error)

    @property
    def id(self) -> str | None:
        return None if self.run is None else str(self.run.id)

    def write(self, metrics: Mapping[str, Any]) -> None:
        prefix = "" if metrics["phase"] == "train" else "eval/"
        self._send(
            {prefix + key: value for key, value in metrics.items() if key not in ("phase", "step")},
            metrics["step"],
        )

    def images(self, step: int, images: Tensor, captions: list[str]) -> None:
        """Log pictures uint8 [N, 3, H, W] with their prompts."""
        with self._guarded():
            if self.run is not None:
                import wandb

                arrays = images.permute(0, 2, 3, 1).numpy()
                pairs = zip(arrays, captions, strict=True)
                self.run.log(
                    {"samples": [wandb.Image(array, caption=text) for array, text in pairs]}, step=step
                )

    def _send(self, values: dict[str, Any], step: int) -> None:
        with self._guarded():
            if self.run is not None:
                self.run.log(values, step=step)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # as above: reported once, then left alone
            log.warning("W&B stopped taking figures (%s); the run goes on without it", error)
            self.run = None

    def close(self) -> None:
        with self._guarded():
            if self.run is not None:
                self.run.finish()
