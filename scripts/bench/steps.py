"""Compare the cost of training steps: single-reward, amortised, refresh, and the published refresh.

Ours go through the trainer's `Descent` on the same micro-batch, so the times cover what a run does between
its rollout and its optimizer. `published_refresh` takes the same forward passes and then follows the
published MARBLE code: one backward pass per reward. Both must agree on the direction before anything is
timed.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from marble_cli.balance.base import Balance, cosines
from marble_cli.balance.cache import DirectionCache
from marble_cli.balance.constant import Scalarisation, ScalarisedReward
from marble_cli.balance.gram import gram
from marble_cli.balance.marble import LeastNorm
from marble_cli.config.enums import SharedTerm
from marble_cli.distributed.layout import Replicated
from marble_cli.distributed.ranks import Ranks
from marble_cli.objective.coefficients import reward_coefficients
from marble_cli.objective.nft import kl_term, mixed_loss, nft_terms
from marble_cli.step.batches import chunks, noised_batches
from marble_cli.step.direction import make_descent
from scripts.bench.report import Cell, Sheet
from scripts.bench.scenes import Scene
from scripts.bench.solvers import slsqp
from scripts.bench.timing import Job, alternate, peak_bytes, ratio

STEP = 2  # a first step always refreshes; from the second on `refresh_every` decides
AMORTISED_REWARDS, REFRESHED_REWARDS = 5, (2, 5, 8)
AGREEMENT = 0.999  # the smallest cosine accepted; bfloat16 reaches 0.99998
TIME_COLUMNS = {"step": "", "K": ".0f", "seconds": ".3f", "x plain": ".3f", "x published": ".3f"}
MEMORY_COLUMNS = {
    "step": "",
    "K": ".0f",
    "peak MB": ".1f",
    "over plain MB": ".1f",
    "K P MB": ".1f",
    "beyond K P, % of plain": ".1f",
}


@dataclass(frozen=True)
class PublishedRefresh:
    """The rewards' gradients `rows` [K, P] float32, and the `direction` [P] of the last backward pass."""

    rows: Tensor
    direction: Tensor


def published_refresh(
    scene: Scene, rewards: int, solve: Callable[[Tensor], Tensor] | None = None
) -> PublishedRefresh:
    """Refresh as the published code does: K backward passes, a QP, and a pass of the mixed loss.

    Each reward's gradient is copied into a flat vector; their float32 Gram matrix goes to scipy's SLSQP.
    Weights, masks and loss are those of this project, so that both sides compute the same direction.

    Args:
        scene: policy and data.
        rewards: K.
        solve: maps the rows [K, P] to weights [K]; by default SLSQP on the float32 Gram matrix of the unit
            gradients.
    """
    policy, algorithm, signal = scene.policy, scene.config.algorithm, scene.rewards(rewards)
    parameters = list(policy.parameters("trained").values())
    coefficients = reward_coefficients(signal.optimality, signal.applicable).rewards.to(policy.device)
    p, q = coefficients.p, coefficients.q
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
            terms,
            p[k, batch.indices],
            q[k, batch.indices],
            clip=algorithm.advantage.clip,
            beta=algorithm.beta,
            count=scene.data.samples,
        )
        for k in range(rewards)
    ]
    rows = v_theta.new_empty(rewards, scene.parameters())
    for row, loss in zip(rows, losses, strict=True):
        row.copy_(_flat(torch.autograd.grad(loss, parameters, retain_graph=True)))
    weights = (solve or _published_weights)(rows)
    kl = algorithm.kl_coef * kl_term(v_theta, v_ref).mean()
    mixed = sum((w * loss for w, loss in zip(weights.tolist(), losses, strict=True)), kl)
    return PublishedRefresh(rows, _flat(torch.autograd.grad(mixed, parameters)))


def _published_weights(rows: Tensor) -> Tensor:
    """Solve for the shares of the unit gradients, and express them as weights [K] of the raw gradients."""
    matrix = rows @ rows.T
    norms = matrix.diagonal().sqrt()
    alpha = torch.from_numpy(slsqp((matrix / norms[:, None] / norms).double().cpu().numpy()))
    return alpha.to(norms) * norms.mean() / norms


def _flat(parts: tuple[Tensor, ...]) -> Tensor:
    """Join gradients to one vector [P]."""
    return torch.cat([part.flatten() for part in parts])


def step_job(
    scene: Scene, rewards: int, *, refresh: bool = False, outside: bool = False, plain: bool = False
) -> Callable[[], Tensor]:
    """Return a job that takes one step through the trainer's `Descent` and returns the direction [P].

    Args:
        scene: policy and data.
        rewards: K.
        refresh: take every reward's own gradient, instead of one backward pass with cached weights.
        outside: keep the shared term outside the balance.
        plain: train on a single reward, or on one weighted sum of several.
    """
    settings = replace(
        scene.config.balance,
        shared_term=SharedTerm.outside if outside else SharedTerm.inside,
        refresh_every=1 if refresh else 10,
        warmup=0,
    )
    config = replace(scene.config, balance=settings)
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
    """Return the cosine between the trainer's and the published direction, both with an exact QP.

    Raises:
        AssertionError: the directions differ, so comparing times would mean nothing.
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
    """Time every kind of step, and compare it with a plain step and with the published refresh."""
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
    for (name, k), times in seconds.items():
        published = seconds.get(("published refresh", k))
        to_published = ratio(times, published) if published and name.startswith("refresh") else None
        to_plain = ratio(times, seconds["plain", 1])
        rows.append((name, float(k), statistics.median(times), to_plain, to_published))
    return Sheet(
        scene.name,
        f"One micro-batch; medians of {repeats} alternating repeats. Before timing, refresh and published "
        f"refresh agreed on the direction (cosine at least {np.floor(cosine * 1e6) / 1e6:.6f}).",
        TIME_COLUMNS,
        rows,
    )


def measure_memory(scene: Scene) -> Sheet:
    """Measure how far a refresh's peak of memory exceeds a plain step's, next to K gradients."""
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
    source = (
        "torch.cuda.max_memory_allocated"
        if device.type == "cuda"
        else "the allocations that torch.profiler saw"
    )
    return Sheet(
        f"Memory, {scene.name}",
        f"Peak of the tensor memory that one step adds, by {source}. "
        "K P is K gradients of the trained parameters in float32.",
        MEMORY_COLUMNS,
        rows,
    )
