"""What a reward plugin is. This module imports nothing heavy, and a plugin need not import even this.

A reward is a class, built once with keyword arguments (`device`, `dtype` and the options under
`rewards.<name>`; those that its constructor does not take are not passed, save that an unknown option is an
error), whose instances are called with a batch; or it is a bare function of a batch. A batch is

    images    uint8 [B, 3, H, W], on the CPU
    prompts   B strings
    metadata  B mappings: what the prompt file says of each prompt beside its text

and the answer is B floats (tensor, array or list), higher is better, NaN where the reward does not apply. In a list an
exception may stand in the place of a float: the reward failed on that image alone, and the exception says why. (Infinity
means the same and says nothing.) A reward that raises has failed on the whole batch, which is then tried again.
Parameters called `images`, `prompts` and `metadata` are passed by these names, in any choice and order; a
callable with one parameter of another name is given the whole `Batch`.

A reward may declare, as attributes of the class or function:

    requires    metadata keys without which it does not apply; the host never passes it such samples. A mapping says
                of which type each is, {"text": str}: a picture whose prompt has another type there has failed, alone,
                and its prompt is named; {"text": str | None} is a key that may be missing. `marble_cli.rewards.kinds`
                has all types, [{"class": str, "count": int}] among them
    range       (low, high): the scores' bounds, None where there is none
    license     of the plugin and of the weights that it loads
    citation    what to cite
    groupwise   true if it must see all images of a prompt in one call; in evaluations that is a single image
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from marble_cli.errors import RewardError
from marble_cli.rewards.kinds import Kind, normal, optional

if TYPE_CHECKING:
    from torch import Tensor


class Batch(NamedTuple):
    """B images with their prompts: `images` uint8 [B, 3, H, W] on the CPU."""

    images: "Tensor"
    prompts: list[str]
    metadata: list[Mapping[str, Any]]


@dataclass(frozen=True)
class Declaration:
    """What a plugin says of itself; see this module's docstring."""

    summary: str = ""
    requires: tuple[str, ...] = ()
    range: tuple[float | None, float | None] = (None, None)
    license: str = ""
    citation: str = ""
    groupwise: bool = False
    types: Mapping[str, Kind] = field(default_factory=dict)  # of metadata, in the host's form

    @classmethod
    def of(cls, plugin: Any) -> "Declaration":
        """Read the attributes of a plugin's class or function.

        Raises:
            RewardError: `requires` is malformed.
        """
        requires, types = required_types(getattr(plugin, "requires", None))
        low, high = getattr(plugin, "range", None) or (None, None)
        lines = (plugin.__doc__ or "").strip().splitlines()
        return cls(
            lines[0] if lines else "",
            requires,
            (low, high),
            getattr(plugin, "license", ""),
            getattr(plugin, "citation", ""),
            bool(getattr(plugin, "groupwise", False)),
            types,
        )


def required_types(requires: Any) -> tuple[tuple[str, ...], dict[str, Kind]]:
    """Return the metadata keys that must be there, and the types of those that have one.

    Args:
        requires: a key, several, a mapping from key to type, or None.

    Raises:
        RewardError: it is something else.
    """
    if isinstance(requires, str):
        return (requires,), {}
    if isinstance(requires, Mapping):
        types = {str(key): normal(kind) for key, kind in requires.items()}
        return tuple(key for key, kind in types.items() if not optional(kind)), types
    try:
        keys = tuple(requires or ())
    except TypeError:
        keys = (requires,)
    if not all(isinstance(key, str) for key in keys):
        raise RewardError(
            f'`requires` is {requires!r}. Expected metadata keys, or types by key: {{"text": str}}.'
        )
    return keys, {}
