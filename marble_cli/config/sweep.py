"""Split overrides in Hydra's sweep grammar into cells, one for each combination of values."""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, RangeSweep, ValueType

from marble_cli.config.compose import GROUPS, choices
from marble_cli.config.overrides import parse, parse_sweep
from marble_cli.errors import ConfigError
from marble_cli.suggest import nearest

LONGEST_NAME = 120  # characters of a cell's name, before eight that tell cells apart
OWN = ("run.name", "run.dir")  # every cell gets its own


@dataclass(frozen=True)
class Cell:
    """One combination of swept values.

    Attributes:
        name: stable and readable, such as `balance.floor=0.1,trainer.seed=0`; the name of its folder.
        values: the swept values by key, in the order of the alphabet, as JSON holds them.
        overrides: the words that set them.
    """

    name: str
    values: dict[str, Any]
    overrides: tuple[str, ...]


def split_sweep(words: Sequence[str]) -> tuple[list[str], list[Cell]]:
    """Split overrides into those with one value, and a cell for each combination of the others' values.

    Hydra reads the words (`a,b`, `choice(...)`, `range(...)`, `glob(...)`), and its basic sweeper combines
    the values.

    Raises:
        ConfigError: an override cannot be read, none gives several values, or a sweep cannot be listed.
    """
    sweeps = {word: override for word in words if (override := parse_sweep(word)) is not None}
    fixed = [word for word in words if word not in sweeps]
    given = parse(fixed)
    if not sweeps:
        raise ConfigError(
            "--multirun: no override gives several values. Expected e.g. balance.floor=0,0.1,0.2 or "
            "'trainer.seed=range(0,3)'."
        )
    keys = [_key(override) for override in (*given, *sweeps.values())]
    for word, override in sweeps.items():
        if override.key_or_group in OWN:
            raise ConfigError(f"{word}: every cell has a name and a folder of its own. Expected one value.")
        if keys.count(key := _key(override)) > 1:
            raise ConfigError(f"{word}: {key} is given twice. Expected it once.")
    listed = [_listed(word, override) for word, override in sweeps.items()]
    (combinations,) = BasicSweeper.split_arguments(listed, None)
    cells = [_cell(combination) for combination in combinations]
    return fixed, list({cell.name: cell for cell in cells}.values())


def _key(override: Override) -> str:
    """Return what an override sets, such as `rewards` or `rewards@eval_rewards`."""
    return override.get_key_element().lstrip("+~")


def plain(value: Any) -> str:
    """Return a swept value as short text: `0.1`, `true`, `ocr+clipscore`."""
    if isinstance(value, list):
        return "+".join(map(plain, value))
    if isinstance(value, dict):
        return "+".join(f"{key}:{plain(part)}" for key, part in value.items())
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _listed(word: str, override: Override) -> Override:
    """Return a sweep whose values Hydra can list: a glob becomes the choices that it matches.

    Raises:
        ConfigError: the sweep is continuous, a range has no values or no end, or a glob matches nothing.
    """
    if not override.is_discrete_sweep():
        raise ConfigError(f"{word}: an interval has no list of values. Expected e.g. a,b or range(0,3).")
    if isinstance(override._value, RangeSweep):
        _check_range(word, override._value)
    if not isinstance(override._value, Glob):
        return override
    group = override.key_or_group
    if group not in GROUPS:
        raise ConfigError(
            f"{word}: glob chooses among the files of a group{nearest(group, list(GROUPS))}. Expected a list "
            "of values: a,b"
        )
    found = override._value.filter(choices(group))
    if not found:
        raise ConfigError(f"{word}: no choice of {group} matches. There are {', '.join(choices(group))}.")
    return dataclasses.replace(override, value_type=ValueType.CHOICE_SWEEP, _value=ChoiceSweep(list=[*found]))


def _check_range(word: str, sweep: RangeSweep) -> None:
    """Refuse a range without values, or without an end."""
    assert sweep.start is not None
    assert sweep.stop is not None
    finite = all(-math.inf < bound < math.inf for bound in (sweep.start, sweep.stop, sweep.step))
    if not finite or not sweep.step or next(iter(sweep.range()), None) is None:
        raise ConfigError(f"{word}: this range has no values, or no end. Expected e.g. range(0,3).")


def _cell(overrides: Sequence[str]) -> Cell:
    values = {_key(override): override.value() for override in sorted(parse(overrides), key=_key)}
    exact = ",".join(f"{key}={plain(value)}" for key, value in values.items())
    name = re.sub(r"[^\w.=,+-]", "-", exact, flags=re.ASCII)
    if name != exact or len(name) > LONGEST_NAME:  # other values may lead to the same characters
        name = f"{name[:LONGEST_NAME]}-{digest(sorted(overrides))}"
    return Cell(name, values, tuple(overrides))


def digest(words: Sequence[str]) -> str:
    """Return eight letters that tell overrides apart."""
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:8]
