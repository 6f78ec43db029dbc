"""Use aggregators of the torchjd package as balances, by name: `torchjd:UPGrad`."""

import time
import zlib
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from marble_cli.balance.base import Solution, active_rewards, spread
from marble_cli.errors import BalanceError, ConfigError
from marble_cli.suggest import nearest

PREFIX = "torchjd:"
# Aggregators whose answer would not depend on the gradients' scale but for an absolute number (`norm_eps`),
# which dominates for small gradients. They get the matrix scaled to unit trace. Not so FairGrad, whose
# direction has its own length, PCD, which compares this step's norms with earlier ones, and GradVac, whose
# `eps` is an option.
SCALED = ("CAGrad", "DualProj", "IMTLG", "UPGrad")

Weighting = Any  # of torchjd, a module: from a Gram matrix [m, m] to weights [m]


@dataclass(frozen=True)
class Torchjd:
    """Ask a Gram-matrix aggregator of torchjd, whose weights of the raw gradients are its shares."""

    name: str
    weighting: Weighting

    def __call__(self, gram: Tensor) -> Solution:
        """Ask the aggregator about the rewards whose gradient is finite and not zero.

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
                # Some draw an order of the rewards; the matrix itself is the seed, so that a resumed run
                # draws the same.
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
        matrix = gram[active][:, active]
        if self.name in SCALED:
            matrix = matrix / matrix.trace()
        try:
            return spread(self._weighting(active)(matrix), active)
        except Exception as error:  # of torchjd: too few gradients, a solver that failed
            raise BalanceError(
                f"balance {PREFIX}{self.name} failed: {type(error).__name__}: {error}"
            ) from error

    def _weighting(self, active: Tensor) -> Weighting:
        """Return the weighting to ask if these rewards [K] are active."""
        return self.weighting


@dataclass(frozen=True)
class StatefulTorchjd(Torchjd):
    """Ask an aggregator that averages over the steps (GradVac, PCD); implements `balance.base.Stateful`.

    Every set of active rewards has its own copy of the weighting, and so its own average. The package knows
    rewards by their place alone, and would mistake one for another if one were left out.
    """

    # By set of active rewards: "101" lacks the second of three.
    copies: dict[str, Weighting] = field(default_factory=dict)

    def _weighting(self, active: Tensor) -> Weighting:
        key = "".join(str(int(one)) for one in active)
        if key not in self.copies:
            self.copies[key] = deepcopy(self.weighting)
        return self.copies[key]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages, named `<set>.<buffer of the weighting>`."""
        return {
            f"{key}.{name}": tensor
            for key, weighting in self.copies.items()
            for name, tensor in weighting.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the averages of a `state_dict`.

        Raises:
            RuntimeError: a name or a shape is not this aggregator's.
        """
        buffers: dict[str, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            key, _, buffer = name.partition(".")
            buffers.setdefault(key, {})[buffer] = tensor
        copies = {key: deepcopy(self.weighting) for key in buffers}
        for key, weighting in copies.items():
            _probe(weighting, key.count("1"))  # makes buffers of that size
            weighting.load_state_dict(buffers[key])
        self.copies.clear()
        self.copies.update(copies)


def torchjd_balance(name: str, options: Mapping[str, Any], rewards: int) -> Torchjd:
    """Build the balance `torchjd:<name>`.

    Args:
        name: an aggregator of `torchjd.aggregation`, such as "UPGrad" or "CAGrad".
        options: its arguments by name, such as {"c": 0.5}.
        rewards: K, for a first call that shows whether the aggregator accepts that many.

    Raises:
        ConfigError: torchjd or a package that the aggregator needs is not installed, torchjd has no such
            aggregator, or the aggregator needs more than the Gram matrix or refuses its arguments.
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
        _probe(weighting, rewards)
    except ImportError as error:
        raise ConfigError(f"balance.name: {PREFIX}{name} needs another package: {error}") from error
    except Exception as error:  # their constructors raise anything for wrong arguments
        raise ConfigError(
            f"balance.options={dict(options)}: {PREFIX}{name} refuses them: {error}. "
            "Expected its arguments, e.g. 'balance.options={n_byzantine: 1}' for Krum"
        ) from error
    if not hasattr(weighting, "reset"):
        return Torchjd(name, weighting)
    weighting.reset()  # forget the matrix of the probe
    return StatefulTorchjd(name, weighting)


def _probe(weighting: Weighting, rewards: int) -> None:
    """Call a weighting on the identity [rewards, rewards], without changing torch's random state."""
    with torch.random.fork_rng(devices=[]):
        weighting(torch.eye(rewards, dtype=torch.float64))
