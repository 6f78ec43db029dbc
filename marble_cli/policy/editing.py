"""Define `EditingFamily`, what families add whose models start from a picture."""

from typing import Protocol, cast

from marble_cli.policy.base import Family


class EditingFamily(Family, Protocol):
    """A family with `conditions`; the picture's latents are the tensor `condition` of embeddings."""

    optional: bool  # whether its models also draw from texts alone

    @property
    def condition_shape(self) -> tuple[int, int, int]:
        """Return (C, H, W) of the picture's latents."""
        ...

    @property
    def picture_tokens(self) -> int:
        """Return the number of tokens that a picture adds to its prompt's."""
        ...


def as_editing(family: Family) -> EditingFamily | None:
    """Return the family if its models start from a picture."""
    return cast(EditingFamily, family) if family.conditions else None
