"""Agree on what all ranks of a run share at its start: the configuration, and the checkpoint to resume from.

The main rank's values are used. Other ranks may run on nodes that do not see its disks.
"""

import hashlib
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from marble_cli.checkpoint import manifest, store
from marble_cli.checkpoint.step_folders import step_of, steps
from marble_cli.checkpoint.store import TrainerState
from marble_cli.config.aspects import plain_by_aspect
from marble_cli.config.compose import dump, read_tree
from marble_cli.config.enums import Role
from marble_cli.config.evaluation import pictured
from marble_cli.config.keys import wrong_shape
from marble_cli.config.schema import RunConfig
from marble_cli.config.typed import completed, typed
from marble_cli.distributed.ranks import Ranks
from marble_cli.errors import CheckpointError, ConfigError, RequestError


@dataclass(frozen=True)
class StoredCheckpoint:
    """The content of a checkpoint, and the settings of its run that matter for resuming.

    The settings are None if the run's `config.yaml` is missing.

    Attributes:
        path: the checkpoint's folder.
        state: the trainer's state.
        weights: the trained weights.
        ema: the moving average of the weights.
        rewards: the names of the rewards.
        balance: the settings of the balance, as `balance_settings` returns them.
        evaluation: how evaluations drew their images, as `config.evaluation.pictured` returns it.
    """

    path: Path
    state: TrainerState
    weights: dict[str, Tensor]
    ema: dict[str, Tensor]
    rewards: list[str] | None
    balance: dict[str, Any] | None
    evaluation: dict[str, Any] | None


def agree_on_config(ranks: Ranks, config: RunConfig) -> RunConfig:
    """Return the main rank's configuration, with the actual numbers of nodes and processes.

    Raises:
        ConfigError: this rank cannot use that configuration unchanged.
    """
    nodes = -(-ranks.world // ranks.local_world)
    config = replace(config, launcher=replace(config.launcher, nodes=nodes, nproc=ranks.local_world))
    if ranks.world == 1:
        return config
    own = dump(config)
    text = ranks.broadcast_json(own)
    with ranks.raise_together():
        agreed = config if own == text else typed(OmegaConf.create(text))
        if own != text and dump(agreed) != text:
            raise ConfigError(
                f"the first process's configuration cannot be used on {socket.gethostname()}: an optional "
                "reward is installed there and not here. Install the same rewards on every node."
            )
    return agreed


def agree_on_checkpoint(ranks: Ranks, folder: Path, checkpoint: Path | None, *, named: bool) -> Path | None:
    """Return the main rank's `checkpoint` on all ranks.

    Args:
        ranks: the ranks of the run.
        folder: the run's folder.
        checkpoint: the checkpoint to resume from; only the main rank's value is used.
        named: whether the user named the checkpoint; then a later one on another node is no error.

    Raises:
        RequestError: another node's disk holds a later step of the run.
    """
    newest = max(map(step_of, steps(folder)), default=0)
    path = None if checkpoint is None else str(checkpoint)
    nodes = ranks.all_gather_json({"host": socket.gethostname(), "step": newest, "path": path})
    main, ahead = nodes[0], max(nodes, key=lambda node: node["step"])
    with ranks.raise_together():
        if ahead["step"] > main["step"] and not named:
            have = f"a checkpoint of step {main['step']}" if main["step"] else "no checkpoint"
            raise RequestError(
                f"{folder.absolute()} holds a checkpoint of step {ahead['step']} on {ahead['host']}, and "
                f"{have} on {main['host']}, where the first process runs: they share no disk. Start with "
                f"{ahead['host']} as the first node, or copy the folder to {main['host']}. Nothing was "
                "changed."
            )
    return None if main["path"] is None else Path(main["path"])


def read_checkpoint(ranks: Ranks, checkpoint: Path) -> StoredCheckpoint:
    """Read `checkpoint` on every rank: from its own disk if the files are equal, else from the main rank.

    The ranks of a machine share the work of verifying full weights.

    Raises:
        CheckpointError: the main rank's checkpoint is damaged.
    """
    with ranks.raise_together():
        own = _digest(checkpoint)
    digest, stored = ranks.broadcast_json(own), None
    with ranks.raise_together():
        try:
            if ranks.is_main or own == digest:
                stored = _load(checkpoint, (ranks.local_rank, ranks.local_world))
        except CheckpointError:
            if ranks.is_main:
                raise
    if not ranks.any(stored is None):
        assert stored is not None
        return stored
    with ranks.raise_together():
        stored = _load(checkpoint) if ranks.is_main else None  # all of it; others may have found a fault
    return _broadcast(ranks, checkpoint, stored)


def _load(checkpoint: Path, share: tuple[int, int] = (0, 1)) -> StoredCheckpoint:
    state, weights, ema = store.load(checkpoint, share)
    tree = read_settings(checkpoint)
    if tree is None:
        return StoredCheckpoint(checkpoint, state, weights, ema, None, None, None)
    return StoredCheckpoint(
        checkpoint,
        state,
        weights,
        ema,
        rewards=list(plain_by_aspect(tree["rewards"])),
        balance=balance_settings(tree),
        evaluation=pictured(tree),
    )


def read_settings(checkpoint: Path) -> dict[Any, Any] | None:
    """Return the configuration of a checkpoint's run as a plain tree, None without a `config.yaml`.

    Raises:
        CheckpointError: it is damaged.
    """
    written = checkpoint.parent.parent / "config.yaml"
    if not written.is_file():
        return None
    try:
        tree = completed(read_tree(written))
        if reason := wrong_shape(tree):
            raise ConfigError(reason)
        if not tree.rewards or not all(map(OmegaConf.is_dict, tree.rewards.values())):
            raise ConfigError(f"rewards={tree.rewards}: expected keys, such as rewards.NAME.plugin=...")
    except ConfigError as error:
        raise CheckpointError(
            f"{written}, the configuration of the checkpoint's run, is damaged: {error} Restore it, or copy "
            "the checkpoint's folder out of the run and name the copy."
        ) from error
    plain: Any = OmegaConf.to_container(tree)
    return dict(plain)


def balance_settings(tree: dict[Any, Any]) -> dict[str, Any]:
    """Return the `balance` group of a configuration's plain tree, rewards' weights, and guards' margins."""
    rewards = plain_by_aspect(tree["rewards"]).items()  # files of older runs have no role
    weights = {name: float(reward.get("weight", 1.0)) for name, reward in rewards}
    guards = {name: reward["margin"] for name, reward in rewards if reward.get("role") == Role.guard.value}
    return {**tree["balance"], "reward_weights": weights, "guards": guards}


def _digest(checkpoint: Path) -> str | None:
    """Return the SHA-256 of the manifest, which holds those of all other files; None without a manifest."""
    file = checkpoint / manifest.NAME
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def _broadcast(ranks: Ranks, checkpoint: Path, stored: StoredCheckpoint | None) -> StoredCheckpoint:
    """Send the main rank's checkpoint to all ranks, tensor by tensor, so that no rank needs extra memory."""
    plan: dict[str, Any] = {}
    groups: dict[str, dict[str, Tensor]] = {}
    if ranks.is_main:
        assert stored is not None
        # File names have no slash, so these two keys cannot collide with a group of the state.
        groups = {**stored.state.tensors, "/weights": stored.weights, "/ema": stored.ema}
        plan = {
            "step": stored.state.step,
            "train": stored.state.train,
            "info": stored.state.info,
            "rewards": stored.rewards,
            "balance": stored.balance,
            "evaluation": stored.evaluation,
            "groups": list(groups),
            "tensors": [
                (group, name, list(tensor.shape), str(tensor.dtype).removeprefix("torch."))
                for group, tensors in groups.items()
                for name, tensor in tensors.items()
            ],
        }
    plan = ranks.broadcast_json(plan)
    received: dict[str, dict[str, Tensor]] = {group: {} for group in plan["groups"]}
    for group, name, shape, dtype in plan["tensors"]:
        own = groups[group][name] if ranks.is_main else torch.empty(shape, dtype=getattr(torch, dtype))
        ranks.broadcast(own.contiguous().view(-1).view(torch.uint8))
        received[group][name] = own
    weights, ema = received.pop("/weights"), received.pop("/ema")
    state = TrainerState(plan["step"], received, plan["info"], plan["train"])
    return StoredCheckpoint(
        checkpoint, state, weights, ema, plan["rewards"], plan["balance"], plan["evaluation"]
    )
