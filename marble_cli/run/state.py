"""Convert a run's state between two steps to and from tensors and JSON, so that it can be resumed exactly."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from marble_cli.balance.cache import DirectionCache
from marble_cli.checkpoint.parts import BALANCE
from marble_cli.checkpoint.store import TrainerState
from marble_cli.distributed.shards import full_on, local, local_shard
from marble_cli.policy.base import Policy
from marble_cli.run.moments import hold_moments, load_moments
from marble_cli.run.state_checks import check_info, check_tensors

# The trainer's state, the trained weights and their moving average.
Packed = tuple[TrainerState, dict[str, Tensor], dict[str, Tensor]]


@dataclass
class Progress:
    """The state after the last finished step.

    Attributes:
        step: the last finished step.
        cache: the direction cache of the balance.
        ema: the moving average of the trained weights, by parameter name.
        base_scores: the scores of the first evaluation, by reward.
        best: the best value of `best_metric` so far.
        best_step: the step of the best checkpoint.
        best_metric: the metric that chooses the best checkpoint.
        evaluated: the last step that was evaluated; -1 for none.
        wandb_id: the id of the run at W&B.
        balance: the state of a `Stateful` balance after `step`.
        rollbacks: how often the run went back to its best checkpoint.
        kl_coef: the KL coefficient since the last rollback; None for the configured one.
        basis: what base scores depend on besides weights (`run.basis`); None from an older checkpoint.
        merged: what `marble merge` made the weights of step 0 from; None if they were not merged.
    """

    step: int
    cache: DirectionCache
    ema: dict[str, Tensor]
    base_scores: dict[str, list[float | None]]
    best: float | None = None
    best_step: int | None = None
    best_metric: str = "eval/composite"
    evaluated: int = -1
    wandb_id: str | None = None
    balance: dict[str, Tensor] | None = None
    rollbacks: int = 0
    kl_coef: float | None = None
    basis: dict[str, Any] | None = None
    merged: dict[str, Any] | None = None

    def forget_run(self) -> None:
        """Drop what belongs to the run of the checkpoint if another run starts from it, with a new start."""
        self.base_scores, self.evaluated = {}, -1
        self.wandb_id = self.best = self.best_step = self.kl_coef = None
        self.rollbacks = 0


def initial_progress(policy: Policy) -> Progress:
    """Return the progress of a run before its first step."""
    ema = {name: p.detach().clone() for name, p in policy.parameters("trained").items()}
    return Progress(0, DirectionCache(), ema, {})


def hold(policy: Policy, optimizer: torch.optim.Optimizer, progress: Progress) -> Packed:
    """Return the trainer's state, the trained weights and their moving average, as this rank holds them.

    Weights have the names that diffusers uses. Tensors are not copied.
    """
    trained = policy.parameters("trained")
    moments = hold_moments(optimizer, trained)
    behaviour: dict[str, Tensor] = {**policy.parameters("behaviour")}
    provenance = policy.provenance()
    info: dict[str, Any] = {
        "cache": progress.cache.state_dict(),
        "base_scores": progress.base_scores,
        "basis": progress.basis,
        "best": progress.best,
        "best_step": progress.best_step,
        "best_metric": progress.best_metric,
        "evaluated": progress.evaluated,
        "wandb_id": progress.wandb_id,
        "rollbacks": progress.rollbacks,
        "kl_coef": progress.kl_coef,
        "merged": progress.merged,
        "origin": provenance,
    }
    tensors = {"behaviour": behaviour, "optimizer": moments}
    if progress.balance is not None:
        tensors[BALANCE] = progress.balance
    scale = provenance["alpha"] / provenance["rank"] if provenance["train"] == "lora" else 1.0
    state = TrainerState(progress.step, tensors, info, provenance["train"], scale)
    return state, policy.named(trained), policy.named(progress.ema)


def pack(policy: Policy, optimizer: torch.optim.Optimizer, progress: Progress) -> Packed:
    """Return copies of what `hold` returns, whole and on the CPU; with shards, on the main rank only."""
    state, trained, ema = hold(policy, optimizer, progress)

    def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: full_on(tensor, 0) for name, tensor in tensors.items()}

    groups = {name: whole(tensors) for name, tensors in state.tensors.items()}
    return replace(state, tensors=groups), whole(trained), whole(ema)


@torch.no_grad()
def unpack(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    state: TrainerState,
    weights: dict[str, Tensor],
    ema: dict[str, Tensor],
) -> Progress:
    """Load a checkpoint into the policy and the optimizer; the inverse of `pack`.

    Raises:
        CheckpointError: the checkpoint is damaged, or does not fit this policy.
    """
    info = check_info(state.step, state.info)
    trained = policy.parameters("trained")
    check_tensors(state, trained, optimizer)
    policy.load_trained(ema)
    average = {name: parameter.detach().clone() for name, parameter in trained.items()}
    policy.load_trained(weights)
    for name, parameter in policy.parameters("behaviour").items():
        local(parameter).copy_(local_shard(state.tensors["behaviour"][name], parameter))
    load_moments(optimizer, trained, state.tensors["optimizer"])
    return Progress(
        step=state.step,
        cache=DirectionCache.from_state(info["cache"]),
        ema=average,
        base_scores=info["base_scores"],
        best=info["best"],
        best_step=info["best_step"],
        best_metric=info["best_metric"],
        evaluated=info["evaluated"],
        wandb_id=info["wandb_id"],
        balance=state.tensors.get(BALANCE),
        rollbacks=info["rollbacks"],
        kl_coef=info["kl_coef"],
        basis=info["basis"],
        merged=info["merged"],
    )
