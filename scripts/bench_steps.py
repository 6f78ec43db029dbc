"""What one training step costs: single-reward, amortised, refresh, and a refresh by one backward pass a reward.

All are taken through the trainer's `Descent` on the same micro-batch, so what is timed is what a run does between its
rollout and its optimizer. `published_refresh` is the comparison: the same forward passes and the recipe of the published
MARBLE code after them. The two must agree on the direction before anything is timed.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from bench_scenes import Scene
from bench_solvers import slsqp
from bench_tools import Cell, Job, Sheet, alternate, peak_bytes, ratio
from torch import Tensor

from marble_cli.balance.base import Balance, cosines
from marble_cli.balance.cache import DirectionCache
from marble_cli.balance.constant import Scalarisation, ScalarisedReward
from marble_cli.balance.gram import gram
from marble_cli.balance.marble import LeastNorm
from marble_cli.config.schema import SharedTerm
from marble_cli.distributed.layout import Replicated
from marble_cli.distributed.ranks import Ranks
from marble_cli.objective.coefficients import reward_coefficients
from marble_cli.objective.nft import kl_term, mixed_loss, nft_terms
from marble_cli.step.batches import chunks, noised_batches
from marble_cli.step.direction import make_descent

STEP = 2  # not a first step, so that only `refresh_every` decides
AMORTISED_REWARDS, REFRESHED_REWARDS = 5, (2, 5, 8)
AGREEMENT = 0.999  # the least cosine; bfloat16 comes to 0.99998


@dataclass(frozen=True)
class PublishedRefresh:
    """Gradient rows [K, P] float32 of the rewards, and the `direction` [P] taken in the last backward pass."""

    rows: Tensor
    direction: Tensor


def published_refresh(
    scene: Scene, rewards: int, solve: Callable[[Tensor], Tensor] | None = None
) -> PublishedRefresh:
    """A refresh as the published code takes it: K backward passes that keep the graph, a QP, and the mixed loss's pass.

    Each reward's gradient is copied into a flat vector; their float32 Gram matrix goes to scipy's SLSQP. Weights,
    masks and loss are this project's, so that both compute the same thing.

    Args:
        scene: policy and data.
        rewards: K.
        solve: from the rows to weights [K]; by SLSQP on the float32 Gram matrix of the unit gradients if None.
    """
    policy, algorithm, signal = scene.policy, scene.config.algorithm, scene.rewards(rewards)
    parameters = list(policy.parameters("trained").values())
    rewards_alone = reward_coefficients(signal.optimality, signal.applicable).rewards
    p, q = rewards_alone.p, rewards_alone.q
    (batch,) = noised_batches(
        scene.data, chunks(scene.data, len(scene.data.x0)), scene.config.trainer.seed, STEP
    )
    at = (batch.xt, batch.t, batch.embeddings)
    with torch.no_grad():
        v_old, v_ref = policy.velocity(*at, "behaviour"), policy.velocity(*at, None)
    v_theta = policy.velocity(*at, "trained")
    terms = nft_terms(batch.x0, batch.xt, batch.t, v_theta, v_old, beta=algorithm.beta)
    losses = [
        mixed_loss(
            terms, p[k, batch.indices], q[k, batch.indices],
            clip=algorithm.advantage.clip, beta=algorithm.beta, count=scene.data.samples,
        )
        for k in range(rewards)
    ]  # fmt: skip
    rows = v_theta.new_empty(rewards, scene.parameters())
    for row, loss in zip(rows, losses, strict=True):
        row.copy_(_flat(torch.autograd.grad(loss, parameters, retain_graph=True)))
    weights = (solve or _published_weights)(rows)
    kl = algorithm.kl_coef * kl_term(v_theta, v_ref).mean()
    mixed = sum((w * loss for w, loss in zip(weights.tolist(), losses, strict=True)), kl)
    return PublishedRefresh(rows, _flat(torch.autograd.grad(mixed, parameters)))


def _published_weights(rows: Tensor) -> Tensor:
    """Shares of the unit gradients, as factors of the raw ones."""
    matrix = rows @ rows.T
    norms = matrix.diagonal().sqrt()
    alpha = torch.from_numpy(slsqp((matrix / norms[:, None] / norms).double().cpu().numpy()))
    return alpha.to(norms) * norms.mean() / norms


def _flat(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def step_job(
    scene: Scene, rewards: int, *, refresh: bool = False, outside: bool = False, plain: bool = False
) -> Callable[[], Tensor]:
    """A function that takes one step through the trainer's `Descent` and returns the direction [P].

    Args:
        scene: policy and data.
        rewards: K.
        refresh: every reward's own gradient rather than one backward pass with cached weights.
        outside: the shared term stays outside the balance.
        plain: single-reward training: one reward, or one mixture of them made beforehand.
    """
    config = scene.config
    shared = SharedTerm.outside if outside else SharedTerm.inside
    every = 1 if refresh else 10
    config = replace(
        config, balance=replace(config.balance, shared_term=shared, refresh_every=every, warmup=0)
    )
    balance: Balance | ScalarisedReward = LeastNorm()
    if plain:
        balance = ScalarisedReward(Scalarisation.weighted_sum, (1.0,) * rewards)
    names = [f"reward{k}" for k in range(rewards)]
    descent = make_descent(config, names, scene.policy, balance, Replicated(Ranks()))
    signal = scene.rewards(rewards)
    weights = torch.linspace(1.0, 2.0, rewards, dtype=torch.float64)
    cache = DirectionCache(weights / weights.sum(), weights)
    return lambda: descent.direct(STEP, signal, scene.data, cache, lambda count: None).gradient


def check_agreement(scene: Scene, rewards: int) -> float:
    """The cosine between the trainer's direction and the published recipe's, with the QP solved exactly in both.

    Raises:
        AssertionError: they differ; a comparison of their times would be of no use.
    """
    ours = step_job(scene, rewards, refresh=True)()
    theirs = published_refresh(scene, rewards, lambda rows: LeastNorm()(gram(rows)).weights).direction
    both = torch.stack([ours, theirs])
    cosine = cosines(gram(both), torch.tensor([1.0, 0.0], dtype=torch.float64))[1].item()
    length = (ours.norm() / theirs.norm()).item()
    assert cosine > AGREEMENT, f"K={rewards}: the directions' cosine is {cosine}"
    assert abs(length - 1) < 1e-2, f"K={rewards}: the directions' lengths differ by {length}"
    return cosine


def time_steps(scene: Scene, repeats: int) -> Sheet:
    """Seconds of every kind of step, and their ratios to a plain step and to the published recipe's refresh."""
    cosine = min(check_agreement(scene, rewards) for rewards in REFRESHED_REWARDS)
    jobs: dict[tuple[str, int], Job] = {
        ("plain", 1): step_job(scene, 1, plain=True),
        ("amortised", AMORTISED_REWARDS): step_job(scene, AMORTISED_REWARDS),
    }
    for k in REFRESHED_REWARDS:
        jobs["published refresh", k] = lambda k=k: published_refresh(scene, k)  # type: ignore[misc]
        jobs["refresh, shared term inside", k] = step_job(scene, k, refresh=True)
        jobs["refresh, shared term outside", k] = step_job(scene, k, refresh=True, outside=True)
    seconds = alternate(jobs, repeats)
    rows: list[tuple[Cell, ...]] = []
    for (name, k), took in seconds.items():
        published = seconds.get(("published refresh", k))
        against = ratio(took, published) if published and name.startswith("refresh") else None
        rows.append((name, float(k), statistics.median(took), ratio(took, seconds["plain", 1]), against))
    return Sheet(
        scene.name,
        f"One micro-batch; medians of {repeats} alternating repeats. Before timing, refresh and published refresh "
        f"agreed on the direction (cosine at least {np.floor(cosine * 1e6) / 1e6:.6f}).",
        {"step": "", "K": ".0f", "seconds": ".3f", "x plain": ".3f", "x published": ".3f"},
        rows,
    )


def measure_memory(scene: Scene) -> Sheet:
    """Peak bytes of a refresh over those of a plain step, beside K vectors of the trained parameters."""
    device, vector = scene.policy.device, 4 * scene.parameters()
    plain = peak_bytes(step_job(scene, 1, plain=True), device)
    rows: list[tuple[Cell, ...]] = [("plain", 1.0, plain / 1e6, None, None, None)]
    for k in REFRESHED_REWARDS:
        for name, job in (
            ("published refresh", lambda k=k: published_refresh(scene, k)),
            ("refresh, shared term inside", step_job(scene, k, refresh=True)),
            ("refresh, shared term outside", step_job(scene, k, refresh=True, outside=True)),
        ):
            peak = peak_bytes(job, device)
            beyond = 100 * (peak - plain - k * vector) / plain
            rows.append((name, float(k), peak / 1e6, (peak - plain) / 1e6, k * vector / 1e6, beyond))
    how = (
        "torch.cuda.max_memory_allocated"
        if device.type == "cuda"
        else "the allocator's own record in torch.profiler"
    )
    return Sheet(
        f"Memory, {scene.name}",
        f"Peak of live tensor memory during one step beyond what was there before, by {how}. "
        "K P is K gradients of the trained parameters in float32.",
        {
            "step": "",
            "K": ".0f",
            "peak MB": ".1f",
            "over plain MB": ".1f",
            "K P MB": ".1f",
            "beyond K P, % of plain": ".1f",
        },
        rows,
    )
