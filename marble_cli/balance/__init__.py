"""Balance rewards: from the Gram matrix of K reward gradients to the weights of one update direction."""

from marble_cli.balance.base import Balance, Solution, Stateful, cosines
from marble_cli.balance.cache import DirectionCache
from marble_cli.balance.gram import gram, normalise
from marble_cli.balance.output_space import output_gram
from marble_cli.balance.registry import build, names

__all__ = [
    "Balance",
    "DirectionCache",
    "Solution",
    "Stateful",
    "build",
    "cosines",
    "gram",
    "names",
    "normalise",
    "output_gram",
]
