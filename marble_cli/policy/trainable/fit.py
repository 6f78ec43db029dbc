"""Compare the tensors of a checkpoint with the model that is to take them."""

from collections.abc import Mapping, Sequence

from torch import Tensor


def find_misfits(expected: Mapping[str, Sequence[int]], given: Mapping[str, Tensor]) -> list[str]:
    """Return the names that only one side has; if there are none, those whose shapes differ.

    Args:
        expected: the model's shapes by name.
        given: the checkpoint's tensors by name.
    """
    if unmatched := sorted(expected.keys() ^ given.keys()):
        return unmatched
    return [name for name, shape in expected.items() if tuple(given[name].shape) != tuple(shape)]


def describe_misfits(
    misfits: Sequence[str], expected: Mapping[str, Sequence[int]], given: Mapping[str, Tensor]
) -> str:
    """Describe a non-empty list of misfits for an error message, the first one by its name and shapes."""
    name = misfits[0]
    there = f"has the shape {list(given[name].shape)}" if name in given else "is missing there"
    here = f"{list(expected[name])} in the model" if name in expected else "unknown to the model"
    return f"does not fit this model: {name} {there} and is {here} ({len(misfits)} tensors differ in all)"
