"""What W&B lacks of a run, and how it is sent: as one history under one id, made anew from metrics.jsonl.

W&B keeps a folder for every start of a run (run-TIME-ID, or offline-run-TIME-ID) with the steps of that start alone. Uploaded
one after the other, each would begin at the history's first line and write over the one before. metrics.jsonl holds every step
once, whatever was stopped, killed and done again.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from omegaconf import OmegaConf

from marble_cli.config.schema import WandbConfig, WandbMode
from marble_cli.errors import MarbleError, RequestError
from marble_cli.files import write_whole
from marble_cli.metrics.jsonl import read
from marble_cli.metrics.wandb_destination import PROJECT, destination

PATIENCE = 20.0  # seconds for the service to answer, at the start and at the end
SENT = "sent"  # a file in the folder of a start: W&B has what the run had written when that start ended
IDENTITY = "run.json"  # in a run's wandb/
# Variables that would change an upload, or keep its errors from being told.
NOT_OURS = ("WANDB_MODE", "WANDB_RESUME", "WANDB_RUN_ID", "WANDB_QUIET", "WANDB_SILENT")


@dataclass(frozen=True)
class Identity:
    """What the run is called at W&B since its last start."""

    id: str
    name: str
    project: str
    entity: str | None
    config: dict[str, Any]

    def write(self, folder: Path) -> None:
        write_whole(folder / "wandb" / IDENTITY, json.dumps(asdict(self), indent=1) + "\n")


def identity(folder: Path) -> Identity | None:
    """Read the run's, as its last start left it; None where it has not been started with W&B.

    Raises:
        RequestError: the file is damaged.
    """
    try:
        return Identity(**json.loads((folder / "wandb" / IDENTITY).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise RequestError(
            f"{folder / 'wandb' / IDENTITY} cannot be read ({error}). Delete it: without it the folders beside it and "
            "config.yaml say what the run is called."
        ) from error


def forget(folder: Path) -> None:
    """Let the next start be of another run: this folder's was cleared away."""
    (folder / "wandb" / IDENTITY).unlink(missing_ok=True)


def starts(folder: Path) -> list[Path]:
    """List W&B's folders of the run's starts, oldest first."""
    found = (path for path in (folder / "wandb").glob("*run-*-*") if path.is_dir() and not path.is_symlink())
    return sorted(found, key=lambda path: path.name.removeprefix("offline-"))


def unsent(folder: Path) -> list[Path]:
    """List the starts of which W&B may lack something, oldest first: offline, cut off, or given up by W&B."""
    return [start for start in starts(folder) if is_unsent(start)]


def is_unsent(start: Path) -> bool:
    return not (start / SENT).exists()


def mark_sent(start: Path) -> None:
    (start / SENT).touch()


def figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the metrics under the names that W&B shows."""
    prefix = "" if metrics["phase"] == "train" else "eval/"
    return {prefix + key: value for key, value in metrics.items() if key not in ("phase", "step")}


def quiet(**more: Any) -> Any:
    """Return settings of W&B for a run that logs figures and nothing of the machine."""
    import wandb

    return wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True, **more)


def send(folder: Path, *, running: bool = False) -> int:
    """Upload the run's whole history over what W&B has of it; returns the number of its steps, 0 if W&B lacks nothing.

    Args:
        folder: the run's.
        running: a run is in the folder; what it is still writing stays to be sent.

    Raises:
        RequestError: the run is sending its figures itself.
        MarbleError: W&B did not take them; nothing is lost.
    """
    waiting, rows = unsent(folder), read(folder / "metrics.jsonl")
    if not waiting or not rows:
        return 0
    if running and not waiting[-1].name.startswith("offline-"):
        raise RequestError(f"{folder}: the run is still sending its figures itself. Sync when it has ended.")
    known = identity(folder) or _guess(folder)
    service = destination(WandbConfig(WandbMode.online, None, None)).service
    _check_reachable(service)
    with tempfile.TemporaryDirectory() as scratch:
        _upload(_rebuild(known, rows, folder / "samples", scratch), service, scratch)
    for start in waiting[:-1] if running else waiting:
        mark_sent(start)
    return len({row["step"] for row in rows})


def _guess(folder: Path) -> Identity:
    """Find out what a run is called that has left no word of it: from its configuration, and the name of its last log."""
    logs = [log for start in starts(folder) for log in start.glob("run-*.wandb")]
    if not logs:
        raise RequestError(
            f"{folder / 'wandb'} holds neither {IDENTITY} nor a log of W&B's that says the run's id. Copy one of them back."
        )
    tree: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    settings = tree["logging"]["wandb"]
    run_id, project = logs[-1].stem.removeprefix("run-"), settings["project"] or PROJECT
    return Identity(run_id, tree["run"]["name"], project, settings["entity"], tree)


def _check_reachable(service: str) -> None:
    try:
        httpx.head(service, timeout=PATIENCE)  # W&B's command would try again for as long as it is let
    except httpx.HTTPError as error:
        raise MarbleError(
            f"W&B at {service} cannot be reached: {error}. Everything is still there."
        ) from error


def _rebuild(known: Identity, rows: list[dict[str, Any]], samples: Path, scratch: str) -> Path:
    """Write an offline run of W&B's with all `rows` and the pictures of their evaluations; returns its folder."""
    import wandb

    run = wandb.init(
        id=known.id, name=known.name, project=known.project, entity=known.entity, config=known.config, dir=scratch,
        mode="offline", settings=quiet(),
    )  # fmt: skip
    for row in rows:
        values, picture = figures(row), samples / f"step-{row['step']:08d}.png"
        if row["phase"] == "eval" and picture.is_file():
            values["samples"] = wandb.Image(str(picture))
        run.log(values, step=row["step"])
    run.finish()
    return Path(run.dir).parent


def _upload(start: Path, service: str, scratch: str) -> None:
    """Upload an offline run by W&B's own command, whose exit code and mark of success do not tell of lost figures."""
    command = [sys.executable, "-m", "wandb", "sync", str(start)]
    environ = {key: value for key, value in os.environ.items() if key not in NOT_OURS}
    environ |= {"WANDB_BASE_URL": service, "WANDB_DIR": scratch}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    said = [line.removeprefix("wandb: ") for line in (done.stdout + done.stderr).strip().splitlines()]
    errors = [line.removeprefix("ERROR ") for line in said if line.startswith("ERROR ")]
    if done.returncode or errors or not any(start.glob("*.wandb.synced")):
        reason = [*errors, *reversed(said), "no reason given"][0]
        raise MarbleError(
            f"W&B did not take the run's history: {reason.rstrip('.')}. Is there room, and a login (`wandb login`, or "
            "WANDB_API_KEY)? Try again; everything is still there."
        )
