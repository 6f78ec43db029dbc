"""One optimizer step's direction: refresh (a QP over the rewards' gradients) or amortised (one backward pass)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from marble_cli.balance.amortise import DirectionCache, advantage_coefficients, amortised_coefficients
from marble_cli.balance.base import Balance, Solution
from marble_cli.balance.constant import Mixture
from marble_cli.balance.gram import gram
from marble_cli.config.schema import Amortize, BalanceMode, RunConfig, SharedTerm
from marble_cli.distributed.ranks import Ranks
from marble_cli.losses.nft import coefficients, shared_coefficients
from marble_cli.policy.base import Policy
from marble_cli.trainer.gradients import Gradients, Objective, TrainingSet, gradients, velocity_gram
from marble_cli.trainer.signal import Signal, cosine, single_mixture


@dataclass(frozen=True)
class Direction:
    """The step's gradient [P], its loss terms and what is worth logging; `cache` serves the steps to come."""

    gradient: Tensor
    cache: DirectionCache
    metrics: dict[str, float]
    warnings: tuple[str, ...] = ()


class Director:
    """Turns a step's signal into a direction with the configured balance."""

    def __init__(self, config: RunConfig, names: list[str], policy: Policy, balance: Balance, ranks: Ranks):
        self.config, self.names, self.policy, self.balance, self.ranks = config, names, policy, balance, ranks
        self.mixture = balance if isinstance(balance, Mixture) else None
        self.objective = Objective(
            config.algorithm.beta,
            config.algorithm.advantage.clip,
            config.algorithm.kl_coef,
            config.trainer.seed,
            config.trainer.micro_batch_size,
        )

    def refreshes(self, step: int, cache: DirectionCache) -> bool:
        """Whether `step` (1-based) takes every reward's gradient apart."""
        balance = self.config.balance
        if (
            balance.mode is BalanceMode.full
            or step <= balance.warmup
            or (step - 1) % balance.refresh_every == 0
        ):
            return True
        return self.mixture is None and cache.alpha is None

    def direct(
        self,
        step: int,
        signal: Signal,
        data: TrainingSet,
        cache: DirectionCache,
        advance: Callable[[int], None],
    ) -> Direction:
        """The direction of one step, summed over ranks."""
        if self.config.balance.mode is BalanceMode.output_space:
            return self._output_space(step, signal, data, cache, advance)

        def take(p: Tensor, q: Tensor) -> Gradients:
            return self._reduced(gradients(self.policy, data, self.objective, p, q, step, advance))

        if self.refreshes(step, cache):
            return self._refresh(signal, cache, take)
        p, q = self._mixture(signal, cache)
        result = take(p, q)
        metrics = {"balance/refresh": 0, **_losses(result, result.losses[0]), **self._cached(cache)}
        return Direction(result.rows[0] + result.kl, cache, metrics)

    def _reduced(self, result: Gradients) -> Gradients:
        losses = (
            self.ranks.sum(result.losses.to(self.policy.device).float())
            if self.ranks.world > 1
            else result.losses
        )
        return Gradients(self.ranks.sum(result.rows), self.ranks.sum(result.kl), losses.double().cpu())

    def _mixture(self, signal: Signal, cache: DirectionCache) -> tuple[Tensor, Tensor]:
        """Coefficients [1, n] of a step with a single backward pass."""
        algorithm, balance = self.config.algorithm, self.config.balance
        if self.mixture is not None:
            return single_mixture(signal, self.mixture, algorithm)
        if balance.amortize is Amortize.advantage:
            assert cache.alpha is not None  # `refreshes` saw to it
            p, q = advantage_coefficients(
                cache.alpha, signal.advantage, signal.applicable, algorithm.advantage.clip
            )
        else:
            weights = cache.direction_weights()
            assert weights is not None
            p, q = amortised_coefficients(
                weights,
                signal.optimality,
                signal.applicable,
                shared_term=balance.shared_term.value,
            )
        return p[None], q[None]

    def _refresh(
        self, signal: Signal, cache: DirectionCache, take: Callable[[Tensor, Tensor], Gradients]
    ) -> Direction:
        balance, count = self.config.balance, len(self.names)
        outside = balance.shared_term is SharedTerm.outside and self.mixture is None
        p, q = coefficients(
            signal.optimality, signal.applicable, shared_term="outside" if outside else "inside"
        )
        extra = (
            single_mixture(signal, self.mixture, self.config.algorithm)
            if self.mixture is not None
            else tuple(row[None] for row in shared_coefficients(signal.applicable))
            if outside
            else (p[:0], q[:0])
        )
        result = take(torch.cat([p, extra[0]]), torch.cat([q, extra[1]]))
        rewards, others = result.rows[:count], result.rows[count:]
        loss, extra_loss = result.losses[:count], result.losses[count:-1].sum()
        if self.mixture is not None:
            direction = others[0]
            metrics = {
                "balance/refresh": 1,
                **_losses(result, extra_loss),
                **self._cosines(rewards, direction),
            }
            return Direction(direction + result.kl, cache, metrics)
        solution = self.balance(gram(rewards))
        direction = (
            solution.weights.to(rewards) @ torch.nan_to_num(rewards)
            if solution.active.any()
            else rewards.new_zeros(rewards.shape[1])
        )
        metrics = {"balance/refresh": 1, **_losses(result, solution.weights @ loss + extra_loss)}
        metrics |= self._cosines(rewards, direction) | self._explained(solution)
        norms = torch.linalg.vector_norm(rewards.double(), dim=1)
        cache = cache.update(solution, norms, balance.ema)
        return Direction(direction + others.sum(0) + result.kl, cache, metrics, self._left_out(solution))

    def _output_space(
        self,
        step: int,
        signal: Signal,
        data: TrainingSet,
        cache: DirectionCache,
        advance: Callable[[int], None],
    ) -> Direction:
        """A QP at every step on the gradients with respect to the velocities, then one backward pass."""
        outside = self.config.balance.shared_term is SharedTerm.outside
        p, q = coefficients(
            signal.optimality, signal.applicable, shared_term="outside" if outside else "inside"
        )
        inner = velocity_gram(self.policy, data, self.objective, p, q, step)
        solution = self.balance(self.ranks.sum(inner.to(self.policy.device)).cpu())
        mixed_p, mixed_q = solution.weights @ p, solution.weights @ q
        if outside:
            shared = shared_coefficients(signal.applicable)
            mixed_p, mixed_q = mixed_p + shared[0], mixed_q + shared[1]
        result = self._reduced(
            gradients(self.policy, data, self.objective, mixed_p[None], mixed_q[None], step, advance)
        )
        metrics = {"balance/refresh": 1, **_losses(result, result.losses[0]), **self._explained(solution)}
        return Direction(result.rows[0] + result.kl, cache, metrics, self._left_out(solution))

    def _cosines(self, rewards: Tensor, direction: Tensor) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for name, row in zip(self.names, rewards, strict=True):
            norm = torch.linalg.vector_norm(row.double()).item()
            metrics[f"balance/grad_norm/{name}"] = norm
            if norm > 0:
                metrics[f"balance/cosine/{name}"] = cosine(direction, row)
        return metrics

    def _left_out(self, solution: Solution) -> tuple[str, ...]:
        names = [n for n, active in zip(self.names, solution.active.tolist(), strict=True) if not active]
        return (f"left out of the balance this step: {', '.join(names)}",) if names else ()

    def _cached(self, cache: DirectionCache) -> dict[str, float]:
        """Shares and weights that an amortised step works with."""
        weights = cache.direction_weights()
        if cache.alpha is None or weights is None:
            return {}
        metrics: dict[str, float] = {}
        for name, alpha, weight in zip(self.names, cache.alpha.tolist(), weights.tolist(), strict=True):
            metrics |= {f"balance/alpha/{name}": alpha, f"balance/weight/{name}": weight}
        return metrics

    def _explained(self, solution: Solution) -> dict[str, float]:
        metrics = {"balance/gap": solution.gap, "balance/solve_seconds": solution.seconds}
        metrics["balance/fallbacks"] = solution.fallbacks
        for k, name in enumerate(self.names):
            if solution.active[k]:
                metrics[f"balance/alpha/{name}"] = solution.alpha[k].item()
                metrics[f"balance/weight/{name}"] = solution.weights[k].item()
        return metrics


def _losses(result: Gradients, policy: Tensor) -> dict[str, float]:
    return {"loss/policy": policy.item(), "loss/kl": result.losses[-1].item()}
