"""Decide whether a run may resume in a folder, and from which checkpoint.

The configuration of the run in the folder is compared with the new one.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marble_cli.checkpoint import store
from marble_cli.checkpoint.manifest import REMEDY
from marble_cli.config.aspects import plain_by_aspect
from marble_cli.config.compose import load_resolved
from marble_cli.config.references import as_tree
from marble_cli.config.schema import RunConfig
from marble_cli.errors import CheckpointError, RequestError
from marble_cli.paths import expand

log = logging.getLogger("marble.run")

REWARDS_MAY_CHANGE = ("timeout", "retries", "max_failed", "optional", "url", "token_env", "isolated")
# Keys that may change when a run resumes: its length, evaluations, reports and use of memory. None: the whole
# group.
MAY_CHANGE = {
    "run": ("name", "dir"),
    "model": ("offload", "embedding_cache", "gradient_checkpointing", "compile", "device"),
    "rollout": ("batch_size",),
    "evaluation": ("batch_size",),
    "trainer": (
        "steps",
        "checkpoint_every",
        "keep_last",
        "keep_every",
        "best",
        "eval_every",
        "eval_prompts",
        "encode_ahead",
        "max_skipped",
        "on_hacking",
        "rollback",
        "pending_batches",
        "micro_batch_size",
        "parallel",
        "fsdp",
    ),
    "logging": None,
    "launcher": None,
}
ABSENT: Any = object()  # stands for the value of a key that a configuration lacks
LONGEST_VALUE = 60  # characters of a value that a message shows
MOST_KEYS = 12  # keys that a message lists


@dataclass(frozen=True)
class Difference:
    """A key whose values differ between the run in the folder and the new configuration."""

    key: str  # as written on the command line
    there: Any  # the value of the run in the folder, or ABSENT
    now: Any  # the new value, or ABSENT
    may_change: bool

    def __str__(self) -> str:
        if self.there is ABSENT:
            return f"{self.key}: new"
        if self.now is ABSENT:
            return f"{self.key}: there, and not now"
        return f"{self.key}: {_show(self.key, self.there)} there, {_show(self.key, self.now)} now"


def differences(there: RunConfig, now: RunConfig) -> list[Difference]:
    """List every key whose value differs, in the order of the configuration.

    The order of rewards and of sources counts as a key of its own.
    """
    before, after = as_tree(there), as_tree(now)
    found = [
        Difference(_name_key(path), old, new, _may_change(path) or _has_moved(old, new))
        for path, old, new in _unequal((), before, after)
        if path[0] != "run"  # the run's name and folder
    ]
    # Their order decides places in the balance's cache and the draws of prompts.
    for key, names in (
        ("rewards", lambda tree: list(plain_by_aspect(tree["rewards"]))),
        ("data.sources", lambda tree: list(tree["data"]["sources"])),
    ):
        old, new = names(before), names(after)
        if old != new and sorted(old) == sorted(new):
            found.append(Difference(f"the order of {key}", old, new, False))
    return found


def describe_differences(found: list[Difference]) -> str:
    """Describe the keys that must not differ, one per line, then those that may, on one line."""
    fixed, free = ([one for one in found if one.may_change is may] for may in (False, True))
    lines = ["Keys that must not change:", *(f"  {one}" for one in fixed[:MOST_KEYS])]
    lines += [f"  and {len(fixed) - MOST_KEYS} more"] if len(fixed) > MOST_KEYS else []
    if free:
        more = f", and {len(free) - MOST_KEYS} more" if len(free) > MOST_KEYS else ""
        lines.append(f"Keys that may change: {'; '.join(map(str, free[:MOST_KEYS]))}{more}.")
    return "\n".join(lines)


def _unequal(path: tuple[str, ...], old: Any, new: Any) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Yield the paths whose values differ; a branch that only one tree has is yielded as one path."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _unequal((*path, str(key)), old.get(key, ABSENT), new.get(key, ABSENT))
    elif old != new:
        yield path, old, new


def _name_key(path: tuple[str, ...]) -> str:
    """Return a key as written on the command line, where a reward's options are keys of the reward itself."""
    option = path[0] in ("rewards", "eval_rewards") and path[2:3] == ("options",)
    return ".".join(path[:2] + path[3:] if option else path)


def _may_change(path: tuple[str, ...]) -> bool:
    group, *rest = path
    if group in ("rewards", "eval_rewards"):
        return (len(rest) == 2 and rest[1] in REWARDS_MAY_CHANGE) or rest[1:] == ["options", "device"]
    keys = MAY_CHANGE.get(group, ())
    return keys is None or rest[0] in keys


def _has_moved(old: Any, new: Any) -> bool:
    """Return whether a path that does not exist here was replaced by one that does: the run was moved."""
    if not (isinstance(old, str) and isinstance(new, str) and old.startswith("/") and new.startswith("/")):
        return False
    return not Path(old).exists() and Path(new).exists()


def _show(key: str, value: Any) -> str:
    if any(word in key.rpartition(".")[2].lower() for word in ("secret", "password", "api_key", "token")):
        return "(not shown)"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def find_checkpoint(folder: Path, config: RunConfig, resume: str) -> Path | None:
    """Return the checkpoint to resume from, or None to start a new run.

    Args:
        folder: the run's folder.
        config: the new configuration.
        resume: auto, never, or the path of a checkpoint or run.

    Raises:
        RequestError: the folder holds a run with another configuration (the keys that differ are listed), or
            holds a run although `resume` is never.
        CheckpointError: the named checkpoint does not exist, or the run has checkpoints and none is valid.
    """
    written = folder / "config.yaml"
    if written.is_file() and resume == "never":
        raise RequestError(
            f"{folder} already holds a run, and --resume never starts a new one. "
            "Choose another folder with run.dir=..., or resume the run with --resume auto."
        )
    if not written.is_file() and (folder / "checkpoints").is_dir() and resume in ("auto", "never"):
        raise RequestError(
            f"{folder} holds checkpoints but no config.yaml that says which run they belong to. Choose "
            "another folder with run.dir=..., or name the checkpoint to start from: "
            f"--resume {folder}/checkpoints/step-..."
        )
    found = differences(load_resolved(written), config) if written.is_file() else []
    if not all(one.may_change for one in found):
        raise RequestError(
            f"{folder} belongs to a run with another configuration ({written}). Nothing was changed. "
            f"{describe_differences(found)}\n"
            f"Choose another folder with run.dir=..., or resume that run: "
            f"marble train --config-name {written}"
        )
    if resume not in ("auto", "never"):
        if not expand("--resume ", resume).exists():
            raise CheckpointError(
                f"--resume {resume}: there is no such folder. Expected auto, never, or the folder of a run "
                "or of a checkpoint."
            )
        return store.resolve(resume)
    if not written.is_file():
        return None
    return newest_checkpoint(folder)


def newest_checkpoint(folder: Path, before: int | None = None) -> Path | None:
    """Return the run's newest valid checkpoint, and warn about each that is skipped; None if there is none.

    Args:
        folder: the run's folder.
        before: consider only checkpoints of earlier steps.

    Raises:
        CheckpointError: there are checkpoints and none is valid; a new run would overwrite them.
    """
    found, skipped = store.newest_valid(folder, before)
    for path, reason in skipped:
        warn_skipped(path, reason)
    if found is None and skipped:
        raise CheckpointError(
            f"{folder} holds {len(skipped)} checkpoints and none is valid. Nothing was changed. The newest: "
            f"{_without_remedy(skipped[0][1])} To start over, choose another folder with run.dir=..., or "
            "move its checkpoints/ away."
        )
    return found


def warn_skipped(path: Path, reason: str) -> None:
    """Warn that a checkpoint is not used."""
    log.warning("checkpoint %s is not usable and was passed over: %s", path.name, _without_remedy(reason))


def _without_remedy(reason: str) -> str:
    """Remove the advice to use another step folder, which is being followed already."""
    return reason.removesuffix(f" {REMEDY}")
