"""Build the balance that the `balance` group of the configuration names."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from marble_cli.balance.base import Balance, Stateful
from marble_cli.balance.constant import Fixed, Scalarisation, ScalarisedReward
from marble_cli.balance.external import PREFIX, torchjd_balance
from marble_cli.balance.groups import make_groups
from marble_cli.balance.guards import Guards, guard
from marble_cli.balance.marble import LeastNorm
from marble_cli.balance.solver import solvers
from marble_cli.balance.upgrad import ProjectedSum
from marble_cli.config import schema
from marble_cli.config.aspects import by_aspect
from marble_cli.config.enums import RefreshWhen, Role
from marble_cli.errors import ConfigError
from marble_cli.plugins import balances
from marble_cli.suggest import nearest

Builder = Callable[[schema.BalanceConfig, Sequence[str], Sequence[float]], Balance | ScalarisedReward]


def names() -> list[str]:
    """List the balances that `balance.name` takes, with those of plugins but without `torchjd:<Name>`."""
    return sorted({*_BUILT_IN, *balances()})


def build_for(
    config: schema.BalanceConfig, rewards: Mapping[str, schema.RewardConfig]
) -> Balance | ScalarisedReward:
    """Build the balance of a run's rewards and of their aspects, as `build` does."""
    rewards = by_aspect(rewards)
    margins = [reward.margin if reward.role is Role.guard else math.nan for reward in rewards.values()]
    return build(config, list(rewards), [reward.weight for reward in rewards.values()], margins)


def build(
    config: schema.BalanceConfig,
    names: Sequence[str],
    reward_weights: Sequence[float],
    margins: Sequence[float] = (),
) -> Balance | ScalarisedReward:
    """Build the balance that a configuration asks for.

    Args:
        config: the `balance` group.
        names: the K rewards' names, in the order of the Gram matrix.
        reward_weights: [K] the rewards' own weights; `balance.weights` overrides them by name.
        margins: [K] of the guards, NaN for a trained reward; may be empty without guards.

    Returns:
        A balance of gradients, or a mixture of the trained rewards, which leaves nothing to balance but
        guards.

    Raises:
        ConfigError: unknown name, unknown solver, infeasible floor, groups or priorities that do not fit the
            rewards, weights that are unknown, negative or all zero, or a balance with a state where
            `balance.refresh_when=stale` needs one without.
    """
    _check_solver(config.solver)
    if all(map(math.isnan, margins)):
        balance = _build(config, names, reward_weights)
    else:
        balance = _build_guarded(config, names, reward_weights, Guards(tuple(margins), config.solver))
    if config.refresh_when is RefreshWhen.stale and isinstance(balance, Stateful):
        raise ConfigError(
            f"balance.refresh_when=stale: balance={config.name} averages over the refreshes, so it cannot be "
            "asked about halves of one. Expected balance.refresh_when=scheduled with it."
        )
    return balance


def _build_guarded(
    config: schema.BalanceConfig, names: Sequence[str], reward_weights: Sequence[float], guards: Guards
) -> Balance | ScalarisedReward:
    """Build the balance of the trained rewards, and put the guards around it."""
    trained = guards.trained.nonzero().flatten().tolist()
    inner = _build(config, [names[k] for k in trained], [reward_weights[k] for k in trained])
    if isinstance(inner, ScalarisedReward):
        return replace(inner, guards=guards)
    return guard(inner, guards)


def _build(
    config: schema.BalanceConfig, names: Sequence[str], reward_weights: Sequence[float]
) -> Balance | ScalarisedReward:
    if config.name.startswith(PREFIX):
        return torchjd_balance(config.name.removeprefix(PREFIX), config.options, len(names))
    if config.name in _BUILT_IN:
        return _BUILT_IN[config.name](config, names, reward_weights)
    plugins = balances()
    if config.name not in plugins:
        known = {*_BUILT_IN, *plugins}
        raise ConfigError(
            f"balance.name: there is no balance {config.name!r}{nearest(config.name, known)}, {PREFIX}<Name>"
        )
    builder: Builder = plugins[config.name].load()
    return builder(config, names, reward_weights)


def _least_norm(unit: bool) -> Builder:
    def builder(
        config: schema.BalanceConfig, names: Sequence[str], reward_weights: Sequence[float]
    ) -> Balance:
        groups = make_groups(config, names)
        entries = "entries (groups and single rewards)" if groups else "rewards"
        _check_floor(config.floor, len(groups) or len(names), entries)
        return LeastNorm(unit, config.floor, config.solver, groups, config.norm_priority)

    return builder


def _upgrad(config: schema.BalanceConfig, names: Sequence[str], reward_weights: Sequence[float]) -> Balance:
    return ProjectedSum(_weights(config, names, reward_weights), config.solver)


def _equal(config: schema.BalanceConfig, names: Sequence[str], reward_weights: Sequence[float]) -> Balance:
    return Fixed((1.0,) * len(names))


def _fixed(config: schema.BalanceConfig, names: Sequence[str], reward_weights: Sequence[float]) -> Balance:
    return Fixed(_weights(config, names, reward_weights))


def _scalarised(
    config: schema.BalanceConfig, names: Sequence[str], reward_weights: Sequence[float]
) -> ScalarisedReward:
    weights = _weights(config, names, reward_weights)
    return ScalarisedReward(Scalarisation(config.name), weights, config.reduce)


def _weights(
    config: schema.BalanceConfig, names: Sequence[str], reward_weights: Sequence[float]
) -> tuple[float, ...]:
    """Return the K rewards' weights, overridden by `balance.weights` and checked."""
    for name in config.weights:
        if name not in names:
            raise ConfigError(
                f"balance.weights: there is no reward {name!r} in this run{nearest(name, names)}"
            )
    own = zip(names, reward_weights, strict=True)
    weights = tuple(float(config.weights.get(name, weight)) for name, weight in own)
    wrong = [
        f"{name}={weight}"
        for name, weight in zip(names, weights, strict=True)
        if not 0.0 <= weight < float("inf")
    ]
    if wrong:
        raise ConfigError(f"reward weights: expected finite numbers of at least 0, got {', '.join(wrong)}")
    if not any(weights):
        raise ConfigError(
            f"reward weights: all {len(names)} are zero, so nothing would be learned. Set one above 0"
        )
    if sum(weights) == math.inf:
        raise ConfigError(
            "reward weights: they add up to more than a float holds, so nothing would be learned. Divide all "
            f"by the largest, {max(weights)}"
        )
    return weights


def _check_solver(solver: str) -> None:
    if solver not in (known := solvers()):
        raise ConfigError(f"balance.solver: {solver!r} is not installed{nearest(solver, known)}")


def _check_floor(floor: float, count: int, entries: str) -> None:
    if not floor >= 0.0 or count * floor > 1.0:
        raise ConfigError(
            f"balance.floor={floor}: {count} {entries} cannot each have a share of at least that much. "
            f"Expected a number in [0, {1.0 / max(count, 1):g}]"
        )


_BUILT_IN: dict[str, Builder] = {
    "marble": _least_norm(unit=True),
    # The same QP as `marble`, but of the Gram matrix of `output_gram`.
    "output_space": _least_norm(unit=True),
    "mgda": _least_norm(unit=False),
    "upgrad": _upgrad,
    "equal": _equal,
    "fixed": _fixed,
    "weighted_sum": _scalarised,
    "advantage_sum": _scalarised,
}
