"""Balances of the torchjd package, by name: `torchjd:UPGrad`."""

import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from marble_cli.balance.base import Solution, active_rewards, spread
from marble_cli.errors import BalanceError, ConfigError
from marble_cli.suggest import nearest

PREFIX = "torchjd:"


@dataclass(frozen=True)
class Torchjd:
    """A Gram-matrix aggregator of torchjd; its weights of the raw gradients are its shares."""

    name: str
    weighting: Callable[[Tensor], Tensor]

    def __call__(self, gram: Tensor) -> Solution:
        """Ask the aggregator about the rewards whose gradient is neither zero nor non-finite.

        Args:
            gram: [K, K] of the raw gradients.

        Raises:
            BalanceError: the aggregator answered with non-finite weights.
        """
        gram = gram.double().cpu()
        active = active_rewards(gram)
        began = time.perf_counter()
        weights = gram.new_zeros(len(gram))
        if active.any():
            with torch.random.fork_rng(devices=[]):
                # Some draw an order of the rewards; the matrix itself is the seed, so that a resumed run draws the same.
                torch.default_generator.manual_seed(zlib.crc32(gram.numpy().tobytes()))
                weights = self._ask(gram, active)
        if not torch.isfinite(weights).all():
            raise BalanceError(
                f"balance {PREFIX}{self.name} returned weights that are not finite: {weights.tolist()}"
            )
        seconds = time.perf_counter() - began
        name = PREFIX + self.name if active.any() else "none"
        return Solution(weights, weights, active, float("nan"), name, 0, seconds)

    def _ask(self, gram: Tensor, active: Tensor) -> Tensor:
        try:
            return spread(self.weighting(gram[active][:, active]), active)
        except Exception as error:  # theirs: too few gradients, a solver that failed
            raise BalanceError(
                f"balance {PREFIX}{self.name} failed: {type(error).__name__}: {error}"
            ) from error


def torchjd_balance(name: str, options: Mapping[str, Any], rewards: int) -> Torchjd:
    """Build the balance `torchjd:<name>`.

    Args:
        name: an aggregator of `torchjd.aggregation`, such as "UPGrad" or "CAGrad".
        options: its arguments by name, such as {"c": 0.5}.
        rewards: K, for a first call that shows whether it takes them.

    Raises:
        ConfigError: torchjd, or a package that the aggregator needs, is not installed, it has no such aggregator, or
            that takes more than the Gram matrix.
    """
    try:
        from torchjd import aggregation
    except ImportError as error:
        raise ConfigError(
            f"balance.name={PREFIX}{name} needs torchjd, which is not installed: pip install torchjd"
        ) from error
    family = aggregation.GramianWeightedAggregator
    known = [
        k
        for k, v in vars(aggregation).items()
        if isinstance(v, type) and issubclass(v, family) and v is not family
    ]
    if name not in known:
        raise ConfigError(
            f"balance.name: torchjd has no Gram-matrix aggregator {name!r}{nearest(name, known)}"
        )
    try:
        weighting = getattr(aggregation, name)(**options).gramian_weighting
        weighting(torch.eye(rewards, dtype=torch.float64))
    except ImportError as error:
        raise ConfigError(f"balance.name: {PREFIX}{name} needs another package: {error}") from error
    except Exception as error:  # whatever their constructors make of wrong arguments
        raise ConfigError(
            f"balance.options={dict(options)}: {PREFIX}{name} refuses them: {error}. "
            "Expected its arguments, e.g. 'balance.options={n_byzantine: 1}' for Krum"
        ) from error
    return Torchjd(name, weighting)
