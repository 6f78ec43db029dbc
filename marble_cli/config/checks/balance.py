"""Refuse keys of `balance` that its balance cannot use."""

from marble_cli.config.enums import BalanceMode, Reduce, RefreshWhen
from marble_cli.config.schema import BalanceConfig
from marble_cli.errors import ConfigError

# Balances that mix rewards into one before there is a gradient.
MIXTURES = ("weighted_sum", "advantage_sum")
# Balances by the point nearest to the origin, a quadratic program (QP) over entries.
QP_BALANCES = ("marble", "mgda", "output_space")
# Balances that find the rewards' weights themselves.
OWN_WEIGHTS = (*QP_BALANCES, "equal")
# Balances of gradients that weigh the rewards as the user says.
WEIGHTED = ("fixed", "upgrad")


def check_balance(balance: BalanceConfig) -> None:
    """Refuse keys that the chosen balance would ignore.

    Raises:
        ConfigError: a key has no effect with this balance; the message names the balances that use it.
    """
    name = balance.name
    if balance.weights and (name in OWN_WEIGHTS or name.startswith("torchjd:")):
        raise ConfigError(
            f"balance.weights: balance={name} finds its own. Expected none, or one of "
            f"balance={', '.join((*MIXTURES, *WEIGHTED))}."
        )
    if balance.options and name in (*OWN_WEIGHTS, *MIXTURES, *WEIGHTED):
        raise ConfigError(
            f"balance.options: balance={name} takes none. Expected them with balance=torchjd:<Name>."
        )
    if balance.reduce is not Reduce.sum and name != "weighted_sum":
        raise ConfigError(
            f"balance.reduce={balance.reduce.value}: balance={name} does not mix raw rewards. Expected it "
            "with balance=weighted_sum."
        )
    if balance.refresh_when is RefreshWhen.stale and (
        balance.mode is not BalanceMode.amortized or name in MIXTURES
    ):
        raise ConfigError(
            f"balance.refresh_when=stale: balance={name} with balance.mode={balance.mode.value} caches no "
            "shares. Expected it with balance.mode=amortized and a balance of the rewards' gradients."
        )
    for key in ("groups", "priorities"):
        if getattr(balance, key) and name not in QP_BALANCES:
            raise ConfigError(
                f"balance.{key}: balance={name} would ignore it. "
                f"Expected none, or one of balance={', '.join(QP_BALANCES)}."
            )
    if name == "output_space" and balance.mode is not BalanceMode.output_space:
        raise ConfigError(
            f"balance.mode={balance.mode.value}: balance=output_space solves the QP of the velocities, in "
            "balance.mode=output_space. That of the weights' gradients is balance=marble."
        )
    if name in MIXTURES and balance.mode is BalanceMode.output_space:
        raise ConfigError(
            f"balance.mode=output_space: balance={name} mixes the rewards before there is a gradient. "
            "Expected mode full or amortized, or balance=output_space."
        )
