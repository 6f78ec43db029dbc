"""Mirror the metrics to Weights & Biases; failures of W&B never stop a run."""

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from marble_cli.config.enums import WandbMode
from marble_cli.config.schema import WandbConfig
from marble_cli.interrupts import blocked_signals
from marble_cli.metrics import wandb_history as history
from marble_cli.metrics.tracker import TrackedRun, named_by_phase
from marble_cli.metrics.wandb_destination import resolve_destination

log = logging.getLogger("marble")


def end_service() -> None:
    """End W&B's service of this process; kill it if it does not end in time, as it may retry for hours."""
    import wandb

    def end() -> None:
        with suppress(Exception, SystemExit):  # it exits with the code of a service that was killed
            wandb.teardown()

    ending = threading.Thread(target=end, name="wandb-teardown", daemon=True)
    ending.start()
    ending.join(history.PATIENCE)
    if ending.is_alive():
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # the process has ended meanwhile
                name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
                if name.startswith("wandb") and int(rest.split()[1]) == os.getpid():
                    os.kill(int(stat.parent.name), signal.SIGKILL)
        ending.join(history.PATIENCE)


def track(run: TrackedRun) -> "WandbRun":
    """Start the tracker `wandb` by the run's `logging.wandb`."""
    settings = run.config["logging"]["wandb"]
    wandb = WandbConfig(WandbMode[settings["mode"]], settings["project"], settings["entity"])
    return WandbRun(wandb, run.folder, run.name, run.config, run.id, run.first)


class WandbRun:
    """One start of the run at W&B; data that cannot be sent stays in `<folder>/wandb` for `marble sync`.

    All starts in one folder have the same id: `run_id`, else the id of the previous start. W&B takes no rows
    of steps that it has: if the first step of this start, `first`, is one of them, `marble sync` is due too.
    """

    def __init__(
        self,
        settings: WandbConfig,
        folder: Path,
        name: str,
        config: dict[str, Any],
        run_id: str | None,
        first: int,
    ) -> None:
        self.run: Any = None
        self.folder, self.online, self.repeats = folder, False, False
        where = resolve_destination(settings)
        for message in where.ignored:
            log.warning("%s", message)
        if where.mode == "disabled":
            return
        import wandb

        def start(mode: Any, known_id: str | None) -> Any:
            self.online, patience = mode != "offline", history.PATIENCE
            limits = {"init_timeout": patience, "finish_timeout": patience, "finish_timeout_raises": True}
            return wandb.init(
                project=where.project,
                entity=where.entity,
                name=name,
                dir=str(folder),
                config=config,
                mode=mode,
                id=known_id,
                resume="allow" if known_id and mode == "online" else None,
                settings=history.quiet_settings(**limits if self.online else {}),
            )

        with self._guarded(), blocked_signals():
            before, last = history.list_starts(folder), history.read_identity(folder)
            known_id = run_id or (last.id if last else None)
            try:
                self.run = start(where.mode, known_id)
            except Exception as error:  # no failure of the service may stop the training
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                log.warning(
                    "W&B cannot be reached (%s); metrics are kept for `marble sync %s`", reason, folder
                )
                for attempt in set(history.list_starts(folder)) - set(before):
                    history.mark_sent(attempt)  # the failed attempt has no data
                end_service()  # the service may still reserve the id of the failed attempt
                self.run = start("offline", known_id)
            identity = history.RunIdentity(self.run.id, name, where.project, where.entity, config)
            identity.write(folder)
            self.repeats = first < self.run.starting_step
            if self.repeats:
                log.warning(
                    "W&B takes no figures of steps that it has; when the run has ended: marble sync %s",
                    folder,
                )
            elif self.online and any(map(history.is_unsent, before)):
                log.warning("W&B lacks earlier steps of this run; when it has ended: marble sync %s", folder)

    @property
    def id(self) -> str | None:
        return None if self.run is None else str(self.run.id)

    def write(self, metrics: Mapping[str, Any]) -> None:
        with self._guarded():
            if self.run is not None:
                self.run.log(named_by_phase(metrics), step=metrics["step"])

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

    def videos(self, step: int, files: list[Path], captions: list[str]) -> None:
        """Log MP4 files with their prompts."""
        with self._guarded():
            if self.run is not None:
                import wandb

                pairs = zip(files, captions, strict=True)
                shown = [wandb.Video(str(file), caption=text, format="mp4") for file, text in pairs]
                self.run.log({"videos": shown}, step=step)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # report once and stop logging: W&B must not stop the training
            log.warning(
                "W&B takes no more metrics (%s); `marble sync %s` sends all when the run has ended",
                error,
                self.folder,
            )
            self.run = None

    def close(self) -> None:
        with self._guarded():
            if self.run is not None:
                start = Path(self.run.dir).parent
                self.run.finish()
                if self.online and not self.repeats:
                    history.mark_sent(start)
