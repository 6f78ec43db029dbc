"""Weights & Biases: a mirror of the metrics that never stops a run."""

import logging
import netrc
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from torch import Tensor

from marble_cli.config.schema import Wandb, WandbMode
from marble_cli.errors import MarbleError
from marble_cli.signals import shielded

log = logging.getLogger("marble")

PATIENCE = 20.0  # seconds for the service to answer, at the start and at the end


def key_configured() -> bool:
    """Whether an API key is at hand, in the environment or in the user's netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return "api.wandb.ai" in netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        return False


def kept_offline(folder: Path) -> list[Path]:
    """What a run's folder holds for W&B that was not sent when it was made, oldest first."""
    return sorted((folder / "wandb").glob("offline-run-*"))


def send(kept: list[Path]) -> None:
    """Upload offline runs, by W&B's own command.

    Raises:
        MarbleError: it failed; nothing is lost.
    """
    import wandb

    service = wandb.setup().settings.base_url
    try:
        httpx.head(service, timeout=PATIENCE)  # the command would try again for as long as it is let
    except httpx.HTTPError as error:
        raise MarbleError(
            f"W&B at {service} cannot be reached: {error}. Everything is still there."
        ) from error
    command = [sys.executable, "-m", "wandb", "sync", *map(str, kept)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise MarbleError(
            f"W&B did not take {len(kept)} offline runs: {said[-1]} Log in with `wandb login` or set WANDB_API_KEY, and "
            "try again; everything is still there."
        )


class WandbRun:
    """One W&B run under <folder>/wandb; without a key or a connection it is kept offline, for `marble sync` later."""

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

        def start(mode: Any) -> Any:
            return wandb.init(
                project=settings.project, entity=settings.entity, name=name, dir=str(folder), config=config,
                mode=mode, id=run_id, resume="allow" if run_id and mode == "online" else None,
                settings=wandb.Settings(
                    silent=True, console="off", x_disable_stats=True, x_disable_meta=True,
                    init_timeout=PATIENCE, finish_timeout=PATIENCE,
                ),
            )  # fmt: skip

        with self._guarded(), shielded():
            try:
                self.run = start(mode)
            except Exception as error:  # any trouble with the service must leave the training alone
                reason = str(error).splitlines()[0]
                log.warning(
                    "W&B cannot be reached (%s); figures are kept for `marble sync %s`", reason, folder
                )
                self.run = start("offline")

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
