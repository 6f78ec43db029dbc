"""What all ranks of a run must hold in common when it starts: the configuration, and the checkpoint to go on from.

The main rank's counts. The others may run on nodes that do not see its disks.
"""

import hashlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from marble_cli.checkpoint import manifest, store
from marble_cli.checkpoint.store import TrainerState
from marble_cli.config.compose import completed, dump, typed
from marble_cli.config.schema import RunConfig
from marble_cli.distributed.ranks import Ranks
from marble_cli.errors import CheckpointError, ConfigError, RequestError


@dataclass(frozen=True)
class Stored:
    """A checkpoint's content, and what is known of its run: rewards, balance and how evaluations drew."""

    path: Path
    state: TrainerState
    weights: dict[str, Tensor]
    ema: dict[str, Tensor]
    rewards: list[str] | None
    balance: dict[str, Any] | None
    judged: dict[str, Any] | None  # as `judged_by`


def common_config(ranks: Ranks, config: RunConfig) -> RunConfig:
    """The main rank's configuration, with the processes that there really are.

    Raises:
        ConfigError: this rank cannot take it over as it is.
    """
    nodes = -(-ranks.world // ranks.local_world)
    config = replace(config, launcher=replace(config.launcher, nodes=nodes, nproc=ranks.local_world))
    text = ranks.broadcast_json(dump(config))
    with ranks.raise_together():
        ours = config if ranks.is_main else typed(OmegaConf.create(text))
        if dump(ours) != text:
            raise ConfigError(
                f"the first process's configuration cannot be used on {socket.gethostname()}: an optional reward is "
                "installed there and not here. Install the same rewards on every node."
            )
    return ours


def common_checkpoint(ranks: Ranks, folder: Path, checkpoint: Path | None, *, named: bool) -> Path | None:
    """The main rank's `checkpoint` on all ranks.

    Args:
        ranks: all of them.
        folder: the run's.
        checkpoint: what the main rank goes on from; the others' is not looked at.
        named: whether it was asked for by its path, whatever else there is.

    Raises:
        RequestError: another node's disk holds a later step of the run.
    """
    newest = max(map(store.step_of, store.steps(folder)), default=0)
    path = None if checkpoint is None else str(checkpoint)
    seen = ranks.all_gather_json({"host": socket.gethostname(), "step": newest, "path": path})
    ahead = max(seen, key=lambda row: row["step"])
    with ranks.raise_together():
        if ahead["step"] > seen[0]["step"] and not named:
            have = f"a checkpoint of step {seen[0]['step']}" if seen[0]["step"] else "no checkpoint"
            raise RequestError(
                f"{folder.absolute()} holds a checkpoint of step {ahead['step']} on {ahead['host']}, and {have} on "
                f"{seen[0]['host']}, where the first process runs: they share no disk. Start with {ahead['host']} as the "
                f"first node, or copy the folder to {seen[0]['host']}. Nothing was changed."
            )
    return None if seen[0]["path"] is None else Path(seen[0]["path"])


def read(ranks: Ranks, checkpoint: Path) -> Stored:
    """Read `checkpoint` on every rank: from its own disk where that holds the same, else from the main rank.

    Raises:
        CheckpointError: it is damaged.
    """
    with ranks.raise_together():
        own = _digest(checkpoint)
    digest, stored = ranks.broadcast_json(own), None
    with ranks.raise_together():
        try:
            if ranks.is_main or own == digest:
                stored = _load(checkpoint)
        except CheckpointError:
            if ranks.is_main:
                raise
    if not ranks.any(stored is None):
        assert stored is not None
        return stored
    return _broadcast(ranks, checkpoint, stored)


def _load(checkpoint: Path) -> Stored:
    state, weights, ema = store.load(checkpoint)
    written = checkpoint.parent.parent / "config.yaml"
    if not written.is_file():
        return Stored(checkpoint, state, weights, ema, None, None, None)
    tree: Any = OmegaConf.to_container(completed(OmegaConf.load(written)))
    return Stored(checkpoint, state, weights, ema, list(tree["rewards"]), tree["balance"], judged_by(tree))


def judged_by(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """Return how evaluations draw by the plain tree of a run's whole configuration."""
    rollout, own = tree["rollout"], tree["evaluation"]
    return {key: rollout[key] if value is None else value for key, value in own.items()}


def _digest(checkpoint: Path) -> str | None:
    """SHA-256 of the manifest, which holds those of all other files; None where there is none."""
    file = checkpoint / manifest.NAME
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def _broadcast(ranks: Ranks, checkpoint: Path, stored: Stored | None) -> Stored:
    """The main rank's on all, one tensor after another; no rank holds more than it would have read."""
    plan: dict[str, Any] = {}
    groups: dict[str, dict[str, Tensor]] = {}
    if ranks.is_main:
        assert stored is not None
        groups = {
            **stored.state.tensors,
            "/weights": stored.weights,
            "/ema": stored.ema,
        }  # a file's name has no slash
        plan = {
            "step": stored.state.step, "train": stored.state.train, "info": stored.state.info, "rewards": stored.rewards, "balance": stored.balance,
            "judged": stored.judged,
            "tensors": [
                (group, name, list(tensor.shape), str(tensor.dtype).removeprefix("torch."))
                for group, tensors in groups.items() for name, tensor in tensors.items()
            ],
            "groups": list(groups),
        }  # fmt: skip
    plan = ranks.broadcast_json(plan)
    received: dict[str, dict[str, Tensor]] = {group: {} for group in plan["groups"]}
    for group, name, shape, dtype in plan["tensors"]:
        own = groups[group][name] if ranks.is_main else torch.empty(shape, dtype=getattr(torch, dtype))
        ranks.broadcast(own.contiguous().view(-1).view(torch.uint8))
        received[group][name] = own
    weights, ema = received.pop("/weights"), received.pop("/ema")
    state = TrainerState(plan["step"], received, plan["info"], plan["train"])
    return Stored(checkpoint, state, weights, ema, plan["rewards"], plan["balance"], plan["judged"])
