"""The range of a configuration key, declared beside its type, and the values outside of it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any

METADATA_KEY = "range"


@dataclass(frozen=True)
class Range:
    """Values that a key accepts: a predicate, and the words that follow "expected" in a message."""

    accepts: Callable[[Any], bool]
    expected: str


@dataclass(frozen=True)
class OutOfRange:
    """A value outside the range of its dotted `key`, and the words for what was expected."""

    key: str
    value: object
    expected: str


POSITIVE = Range(lambda value: 0.0 < value < math.inf, "a number above 0")
SECONDS = Range(  # sockets count milliseconds in 32 bits
    lambda value: 0.0 < value <= 2_000_000, "a number above 0 and at most 2000000, which is 23 days"
)
SHARE = Range(lambda value: 0.0 <= value <= 1.0, "a number in [0, 1]")
BELOW_1 = Range(lambda value: 0.0 <= value < 1.0, "a number in [0, 1)")
ABOVE_1 = Range(lambda value: 1.0 < value < math.inf, "a number above 1")
SEED = Range(lambda seed: 0 <= seed < 2**63, "a number from 0 to 2^63 - 1")
GUIDANCE = Range(
    lambda value: value == 0 or 1 <= value < math.inf, "0 or at least 1; both 0 and 1 mean no guidance"
)


def at_least(low: int, addition: str = "") -> Range:
    """Accept finite numbers from `low` on; `addition` follows the number in a message."""
    return Range(lambda value: low <= value < math.inf, f"at least {low}{addition}")


def text(expected: str) -> Range:
    """Accept text that holds more than blanks."""
    return Range(lambda value: bool(value.strip()), expected)


def within(values: Range) -> dict[str, Range]:
    """Return the metadata of a field whose value must be in a range.

    Null passes every range: the type says whether a key may be null. Of a mapping, each value must be in
    the range.
    """
    return {METADATA_KEY: values}


def ranged(default: Any, values: Range) -> Any:
    """Declare a field of a dataclass with an immutable default, `within` a range."""
    return field(default=default, metadata=within(values))


def range_of(key: Field[Any]) -> Range | None:
    """Return the range that `ranged` declared for a field."""
    return key.metadata.get(METADATA_KEY)


def find_out_of_range(node: Any, prefix: str = "") -> Iterator[OutOfRange]:
    """Walk a dataclass of the schema, and yield every value that is outside its key's range."""
    for key in fields(node):
        value, values = getattr(node, key.name), range_of(key)
        path = f"{prefix}{key.name}"
        parts = (
            {f"{path}.{name}": part for name, part in value.items()}
            if isinstance(value, dict)
            else {path: value}
        )
        for place, part in parts.items():
            if is_dataclass(part):
                yield from find_out_of_range(part, f"{place}.")
            elif values is not None and part is not None and not values.accepts(part):
                expected = values.expected
                if isinstance(part, float) and not math.isfinite(part):
                    expected = f"a finite number {expected.removeprefix('a number ')}"
                yield OutOfRange(place, repr(part) if isinstance(part, str) else part, expected)
