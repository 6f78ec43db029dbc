"""Weights & Biases: a mirror of the metrics that never stops a run."""

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from marble_cli.config.schema import WandbConfig
from marble_cli.interrupts import blocked_signals
from marble_cli.metrics import wandb_history as history
from marble_cli.metrics.wandb_destination import destination

log = logging.getLogger("marble")


def end_service() -> None:
    """End W&B's service of this process, by force if it does not end in time: it may try to send for hours."""
    import wandb

    def end() -> None:
        with suppress(Exception):  # whatever it has to say of its own end
            wandb.teardown()

    ending = threading.Thread(target=end, name="wandb-teardown", daemon=True)
    ending.start()
    ending.join(history.PATIENCE)
    if ending.is_alive():
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # a process that has ended meanwhile
                name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
                if name.startswith("wandb") and int(rest.split()[1]) == os.getpid():
                    os.kill(int(stat.parent.name), signal.SIGKILL)
        ending.join(history.PATIENCE)


class WandbRun:
    """One start of the run at W&B, under <folder>/wandb; what cannot be sent is kept there, for `marble sync` later.

    All starts of a run in one folder have one id: `run_id`, else that of the start before.
    """

    def __init__(
        self, settings: WandbConfig, folder: Path, name: str, config: dict[str, Any], run_id: str | None
    ) -> None:
        self.run: Any = None
        self.folder, self.online = folder, False
        where = destination(settings)
        for words in where.unheard:
            log.warning("%s", words)
        if where.mode == "disabled":
            return
        import wandb

        def start(mode: Any, known: str | None) -> Any:
            self.online, patience = mode != "offline", history.PATIENCE
            limits = {"init_timeout": patience, "finish_timeout": patience, "finish_timeout_raises": True}
            return wandb.init(
                project=where.project, entity=where.entity, name=name, dir=str(folder), config=config,
                mode=mode, id=known, resume="allow" if known and mode == "online" else None,
                settings=history.quiet(**limits if self.online else {}),
            )  # fmt: skip

        with self._guarded(), blocked_signals():
            before, last = history.starts(folder), history.identity(folder)
            known = run_id or (last.id if last else None)
            try:
                self.run = start(where.mode, known)
            except Exception as error:  # any trouble with the service must leave the training alone
                reason = str(error).splitlines()[0]
                log.warning(
                    "W&B cannot be reached (%s); figures are kept for `marble sync %s`", reason, folder
                )
                for attempt in set(history.starts(folder)) - set(before):
                    history.mark_sent(attempt)  # nothing was written to it
                end_service()  # it may hold on to the id of what has just failed
                self.run = start("offline", known)
            identity = history.Identity(self.run.id, name, where.project, where.entity, config)
            identity.write(folder)
            if self.online and any(map(history.is_unsent, before)):
                log.warning("W&B lacks earlier steps of this run; when it has ended: marble sync %s", folder)

    @property
    def id(self) -> str | None:
        return None if self.run is None else str(self.run.id)

    def write(self, metrics: Mapping[str, Any]) -> None:
        with self._guarded():
            if self.run is not None:
                self.run.log(history.figures(metrics), step=metrics["step"])

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

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # as above: reported once, then left alone
            log.warning(
                "W&B takes no more figures (%s); `marble sync %s` sends all when the run has ended",
                error, self.folder,
            )  # fmt: skip
            self.run = None

    def close(self) -> None:
        with self._guarded():
            if self.run is not None:
                start = Path(self.run.dir).parent
                self.run.finish()
                if self.online:
                    history.mark_sent(start)
