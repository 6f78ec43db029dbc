"""Upload a run's history to W&B: one history under one id, rebuilt from metrics.jsonl.

W&B keeps a folder for every start of a run (run-TIME-ID, or offline-run-TIME-ID) with the steps of that start
only. If these were uploaded one after the other, each would begin at the first line of the history and
overwrite the one before. metrics.jsonl holds every step once, even if the run was stopped, killed or resumed.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from omegaconf import OmegaConf

from marble_cli.config.enums import WandbMode
from marble_cli.config.schema import WandbConfig
from marble_cli.errors import MarbleError, RequestError
from marble_cli.files import write_whole
from marble_cli.metrics.jsonl import Row, read_rows
from marble_cli.metrics.tracker import named_by_phase
from marble_cli.metrics.wandb_destination import PROJECT, resolve_destination

PATIENCE = 20.0  # seconds; timeout for the service to answer, at the start and at the end
SENT = "sent"  # marker file in the folder of a start: W&B has all rows that were written until its end
IDENTITY = "run.json"  # in a run's wandb/
# Environment variables that would change an upload or hide its errors.
REMOVED_VARIABLES = ("WANDB_MODE", "WANDB_RESUME", "WANDB_RUN_ID", "WANDB_QUIET", "WANDB_SILENT")


@dataclass(frozen=True)
class RunIdentity:
    """The id, name and place of a run at W&B, as of its last start."""

    id: str
    name: str
    project: str
    entity: str | None
    config: dict[str, Any]

    def write(self, folder: Path) -> None:
        write_whole(folder / "wandb" / IDENTITY, json.dumps(asdict(self), indent=1) + "\n")


def read_identity(folder: Path) -> RunIdentity | None:
    """Read the identity that the last start of a run wrote; None if no start used W&B.

    Raises:
        RequestError: the file is damaged.
    """
    try:
        return RunIdentity(**json.loads((folder / "wandb" / IDENTITY).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise RequestError(
            f"{folder / 'wandb' / IDENTITY} cannot be read ({error}). Delete it: then the run's id and name "
            "are taken from W&B's folders in wandb/ and from config.yaml."
        ) from error


def forget_identity(folder: Path) -> None:
    """Delete the identity, so that the next start is a new run at W&B."""
    (folder / "wandb" / IDENTITY).unlink(missing_ok=True)


def list_starts(folder: Path) -> list[Path]:
    """List W&B's folders of the run's starts, oldest first."""
    folders = (
        path for path in (folder / "wandb").glob("*run-*-*") if path.is_dir() and not path.is_symlink()
    )
    return sorted(folders, key=lambda path: path.name.removeprefix("offline-"))


def list_unsent_starts(folder: Path) -> list[Path]:
    """List the starts that W&B may lack data of, oldest first: offline, killed, or given up by W&B."""
    return [start for start in list_starts(folder) if is_unsent(start)]


def is_unsent(start: Path) -> bool:
    """Tell whether W&B may lack data of a start."""
    return not (start / SENT).exists()


def mark_sent(start: Path) -> None:
    """Record that W&B has all data of a start."""
    (start / SENT).touch()


def quiet_settings(**more: Any) -> Any:
    """Return W&B settings of a run that logs metrics only, and nothing about the machine."""
    import wandb

    return wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True, **more)


def upload_history(folder: Path, *, running: bool = False) -> int:
    """Upload the run's whole history to W&B; return the number of its steps, or 0 if W&B lacks nothing.

    Args:
        folder: the run's folder.
        running: whether a process still trains in the folder; its last start then stays unsent.

    Raises:
        RequestError: the running process sends its metrics itself.
        MarbleError: W&B did not accept the upload; nothing is lost.
    """
    waiting, rows = list_unsent_starts(folder), read_rows(folder / "metrics.jsonl")
    if not waiting or not rows:
        return 0
    if running and not waiting[-1].name.startswith("offline-"):
        raise RequestError(f"{folder}: the run is still sending its metrics itself. Sync when it has ended.")
    identity = read_identity(folder) or _infer_identity(folder)
    service = resolve_destination(WandbConfig(WandbMode.online, None, None)).service
    _check_reachable(service)
    with tempfile.TemporaryDirectory() as scratch:
        _upload(_rebuild(identity, rows, folder / "samples", scratch), service, scratch)
    for start in waiting[:-1] if running else waiting:
        mark_sent(start)
    return len({row["step"] for row in rows})


def _infer_identity(folder: Path) -> RunIdentity:
    """Infer the identity of a run without `run.json` from its configuration and W&B's last log."""
    logs = [log for start in list_starts(folder) for log in start.glob("run-*.wandb")]
    if not logs:
        raise RequestError(
            f"{folder / 'wandb'} holds neither {IDENTITY} nor a log of W&B with the run's id in its name. "
            "Copy one of them back."
        )
    tree: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    settings = tree["logging"]["wandb"]
    run_id, project = logs[-1].stem.removeprefix("run-"), settings["project"] or PROJECT
    return RunIdentity(run_id, tree["run"]["name"], project, settings["entity"], tree)


def _check_reachable(service: str) -> None:
    try:
        httpx.head(service, timeout=PATIENCE)  # W&B's own command would retry without end
    except httpx.HTTPError as error:
        raise MarbleError(
            f"W&B at {service} cannot be reached: {error}. All metrics are still there."
        ) from error


def _rebuild(identity: RunIdentity, rows: list[Row], samples: Path, scratch: str) -> Path:
    """Write an offline W&B run with all `rows` and the pictures of the evaluations; return its folder."""
    import wandb

    run = wandb.init(
        id=identity.id,
        name=identity.name,
        project=identity.project,
        entity=identity.entity,
        config=identity.config,
        dir=scratch,
        mode="offline",
        settings=quiet_settings(),
    )
    for row in rows:
        values, picture = named_by_phase(row), samples / f"step-{row['step']:08d}.png"
        if row["phase"] == "eval" and picture.is_file():
            values["samples"] = wandb.Image(str(picture))
        run.log(values, step=row["step"])
    run.finish()
    return Path(run.dir).parent


def _upload(start: Path, service: str, scratch: str) -> None:
    """Upload an offline run with W&B's own command.

    Its exit code and its marker of success do not reveal lost metrics, so its output is searched for errors,
    too.
    """
    command = [sys.executable, "-m", "wandb", "sync", str(start)]
    environ = {key: value for key, value in os.environ.items() if key not in REMOVED_VARIABLES}
    environ |= {"WANDB_BASE_URL": service, "WANDB_DIR": scratch}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    output = [line.removeprefix("wandb: ") for line in (done.stdout + done.stderr).strip().splitlines()]
    errors = [line.removeprefix("ERROR ") for line in output if line.startswith("ERROR ")]
    if done.returncode or errors or not any(start.glob("*.wandb.synced")):
        reason = [*errors, *reversed(output), "no reason given"][0]
        raise MarbleError(
            f"W&B did not take the run's history: {reason.rstrip('.')}. Check that there is free space and a "
            "login (`wandb login`, or WANDB_API_KEY), and try again; everything is still there."
        )
