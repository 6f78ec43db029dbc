"""Read `only_if`: on which images a reward applies, by the scores of other rewards on the same image."""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from marble_cli.config.aspects import by_aspect
from marble_cli.config.schema import RewardConfig
from marble_cli.errors import ConfigError
from marble_cli.suggest import nearest

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
PART = re.compile(
    r"\s*(?P<name>[\w.-]+)\s*(?P<sign>[<>]=?)\s*(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*"
)
GRAMMAR = 'NAME OP NUMBER, OP one of > >= < <=, several joined by `and`, such as "ocr > 0.8 and objects >= 1"'


@dataclass(frozen=True)
class Condition:
    """A comparison of another reward's score with a number."""

    name: str
    sign: str
    number: float

    def holds(self, scores: Any) -> Any:
        """Compare scores of the other reward, elementwise; NaN meets no condition."""
        return COMPARISONS[self.sign](scores, self.number)


def parse_condition(text: str) -> tuple[Condition, ...]:
    """Read the value of `only_if`; all of the conditions must hold.

    Raises:
        ValueError: it does not follow the grammar.
    """
    parts = [PART.fullmatch(part) for part in re.split(r"\sand\s", text)]
    if not all(parts):
        raise ValueError(f"expected {GRAMMAR}")
    return tuple(Condition(part["name"], part["sign"], float(part["number"])) for part in parts if part)


def conditions(rewards: Mapping[str, RewardConfig]) -> dict[str, tuple[Condition, ...]]:
    """Return the conditions of rewards that have some, in an order in which each follows those it names.

    Args:
        rewards: settings by name, as `by_aspect` returns them.

    Raises:
        ValueError: a condition does not follow the grammar, or they are circular.
    """
    waiting = {name: parse_condition(row.only_if) for name, row in rewards.items() if row.only_if is not None}
    ordered: dict[str, tuple[Condition, ...]] = {}
    while waiting:
        ready = [name for name, parts in waiting.items() if not any(part.name in waiting for part in parts)]
        if not ready:
            raise ValueError(f"the conditions of {_cycle(waiting)} are circular")
        ordered |= {name: waiting.pop(name) for name in ready}
    return ordered


def _cycle(waiting: Mapping[str, tuple[Condition, ...]]) -> str:
    """Describe a cycle among rewards that all wait for another one."""
    path = [next(iter(waiting))]
    while path[-1] not in path[:-1]:
        path.append(next(part.name for part in waiting[path[-1]] if part.name in waiting))
    return " -> ".join(path[path.index(path[-1]) :])


def check_conditions(trained: Mapping[str, RewardConfig], watched: Mapping[str, RewardConfig]) -> None:
    """Check every `only_if`: its grammar, and that it names other rewards that are scored with its own.

    Args:
        trained: the settings under `rewards`.
        watched: the settings under `eval_rewards`, which only evaluations score.

    Raises:
        ConfigError: a condition is malformed, circular, or names no other reward that is scored with its own.
    """
    rewards, seen = by_aspect(trained), by_aspect(watched)
    for group, rows, scored in (("rewards", rewards, rewards), ("eval_rewards", seen, {**rewards, **seen})):
        for name, row in rows.items():
            if row.only_if is None:
                continue
            key = f"{group}.{name}: only_if={row.only_if!r}"
            try:
                parts = parse_condition(row.only_if)
            except ValueError as error:
                raise ConfigError(f"{key}: {error}.") from error
            for part in parts:
                if part.name == name:
                    raise ConfigError(f"{key} names the reward itself. Expected another one.")
                if part.name in seen and group == "rewards":
                    raise ConfigError(
                        f"{key}: {part.name} is under eval_rewards, so training does not score it. "
                        "Expected a reward under rewards."
                    )
                if part.name not in scored:
                    others = [other for other in scored if other != name]
                    raise ConfigError(
                        f"{key}: there is no reward {part.name!r} in this run{nearest(part.name, others)}"
                    )
    try:
        conditions({**rewards, **seen})
    except ValueError as error:
        raise ConfigError(f"only_if: {error}. Leave one of them out.") from error
