"""Whether a run may go on in a folder, and from where: its configuration beside the one that is there, and its checkpoints."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from marble_cli.checkpoint import store
from marble_cli.checkpoint.manifest import REMEDY
from marble_cli.config.compose import load_resolved
from marble_cli.config.schema import RunConfig
from marble_cli.errors import CheckpointError, RequestError

log = logging.getLogger("marble.run")

REWARDS_MAY_CHANGE = ("timeout", "retries", "max_failed", "optional", "url", "token_env", "isolated")
# What may differ when a run goes on: how long, how often it looks, where it reports, and how it lives with its memory.
CONTINUABLE = {
    "run": ("name", "dir"),
    "model": ("embedding_cache", "gradient_checkpointing", "compile", "device"),
    "rollout": ("batch_size",),
    "trainer": (
        "steps", "checkpoint_every", "keep_last", "keep_every", "best", "eval_every", "eval_prompts", "encode_ahead",
        "max_skipped", "pending_batches",
        "micro_batch_size", "parallel", "fsdp",
    ),
    "logging": None,
    "launcher": None,
}  # fmt: skip
ABSENT: Any = object()  # in the place of a value
LONGEST, MOST = 60, 12  # letters of a value and keys that a message has


@dataclass(frozen=True)
class Difference:
    """A key, as it is written on the command line, whose values in two configurations differ; `ABSENT` is none."""

    key: str
    there: Any
    now: Any
    may_change: bool

    def __str__(self) -> str:
        if self.there is ABSENT:
            return f"{self.key}: new"
        if self.now is ABSENT:
            return f"{self.key}: there, and not now"
        return f"{self.key}: {_shown(self.key, self.there)} there, {_shown(self.key, self.now)} now"


def differences(there: RunConfig, now: RunConfig) -> list[Difference]:
    """List every key whose value differs, in the order of the configuration; the order of rewards and sources is one, too."""
    before, after = _tree(there), _tree(now)
    found = [
        Difference(_written(path), old, new, _may_change(path) or _has_moved(old, new))
        for path, old, new in _unequal((), before, after)
        if path[0] != "run"  # what it is called, and where it lies
    ]
    for path in (("rewards",), ("data", "sources")):  # it places them in the balance's cache and in the draws
        old, new = (list(_at(tree, path)) for tree in (before, after))
        if old != new and sorted(old) == sorted(new):
            found.append(Difference(f"the order of {'.'.join(path)}", old, new, False))
    return found


def describe(found: list[Difference]) -> str:
    """Tell what differs: a line per key that must not, then the keys that may."""
    bound, free = ([one for one in found if one.may_change is may] for may in (False, True))
    lines = ["What differs:", *(f"  {one}" for one in bound[:MOST])]
    lines += [f"  and {len(bound) - MOST} more"] if len(bound) > MOST else []
    if free:
        more = f", and {len(free) - MOST} more" if len(free) > MOST else ""
        lines.append(f"What may change when a run goes on: {'; '.join(map(str, free[:MOST]))}{more}.")
    return "\n".join(lines)


def _tree(config: RunConfig) -> dict[str, Any]:
    tree: Any = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    return tree  # type: ignore[no-any-return]


def _at(tree: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for part in path:
        tree = tree[part]
    return tree


def _unequal(path: tuple[str, ...], old: Any, new: Any) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Yield the paths whose values differ; a branch that only one of the trees has is one of them."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _unequal((*path, str(key)), old.get(key, ABSENT), new.get(key, ABSENT))
    elif old != new:
        yield path, old, new


def _written(path: tuple[str, ...]) -> str:
    """Return a key as it is written on the command line, where options of a reward stand among its own keys."""
    option = path[0] in ("rewards", "eval_rewards") and path[2:3] == ("options",)
    return ".".join(path[:2] + path[3:] if option else path)


def _may_change(path: tuple[str, ...]) -> bool:
    group, *rest = path
    if group in ("rewards", "eval_rewards"):
        return len(rest) == 2 and rest[1] in REWARDS_MAY_CHANGE
    keys = CONTINUABLE.get(group, ())
    return keys is None or rest[0] in keys


def _has_moved(old: Any, new: Any) -> bool:
    """Tell whether a path of another folder or machine, which is not here, has one that is here in its place."""
    if not (isinstance(old, str) and isinstance(new, str) and old.startswith("/") and new.startswith("/")):
        return False
    return not Path(old).exists() and Path(new).exists()


def _shown(key: str, value: Any) -> str:
    if any(word in key.rpartition(".")[2].lower() for word in ("secret", "password", "api_key", "token")):
        return "(not shown)"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def find_checkpoint(folder: Path, config: RunConfig, resume: str) -> Path | None:
    """The checkpoint to go on from, or None for a fresh start.

    Raises:
        RequestError: the folder belongs to another configuration (the keys that differ are named), or is not to be resumed but holds a run.
        CheckpointError: the named checkpoint does not exist, or the run has some and none is valid.
    """
    written = folder / "config.yaml"
    if written.is_file() and resume == "never":
        raise RequestError(
            f"{folder} holds a run already and --resume never asks for a fresh one. "
            "Choose another folder with run.dir=..., or continue it with --resume auto."
        )
    if not written.is_file() and (folder / "checkpoints").is_dir() and resume in ("auto", "never"):
        raise RequestError(
            f"{folder} holds checkpoints and no config.yaml that says which run they are of. Choose another folder with "
            f"run.dir=..., or name the checkpoint to start from: --resume {folder}/checkpoints/step-..."
        )
    found = differences(load_resolved(written), config) if written.is_file() else []
    if not all(one.may_change for one in found):
        raise RequestError(
            f"{folder} belongs to a run with another configuration ({written}). Nothing was changed. {describe(found)}\n"
            f"Choose another folder with run.dir=..., or continue that run: marble train --config-name {written}"
        )
    if resume not in ("auto", "never"):
        return store.resolve(resume)
    if not written.is_file():
        return None
    return newest(folder)


def newest(folder: Path, before: int | None = None) -> Path | None:
    """The run's newest valid checkpoint, with a word on each that is passed over; None where there is none at all.

    Raises:
        CheckpointError: there are some, and none is valid: starting over would write over them.
    """
    found, skipped = store.newest_valid(folder, before)
    for path, reason in skipped:
        passed_over(path, reason)
    if found is None and skipped:
        raise CheckpointError(
            f"{folder} holds {len(skipped)} checkpoints and none is valid. Nothing was changed. The newest: "
            f"{_fault(skipped[0][1])} To start over, choose another folder with run.dir=..., or move its checkpoints/ away."
        )
    return found


def passed_over(path: Path, reason: str) -> None:
    log.warning("checkpoint %s is not usable and was passed over: %s", path.name, _fault(reason))


def _fault(reason: str) -> str:
    """Without the advice to do what is being done."""
    return reason.removesuffix(f" {REMEDY}")
