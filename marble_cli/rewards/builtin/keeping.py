"""Score how much an edited image keeps of the picture before the edit."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from marble_cli.rewards.region import region_pixels


def keeping(
    images: Tensor, metadata: Sequence[Mapping[str, Any]], conditions: Tensor
) -> list[float | ValueError]:
    """Measure what an edit leaves as it was: minus the mean change of a pixel, in grey levels of 255.

    The prompt's metadata may have a `region` that the edit is about, [left, top, right, bottom] as shares of
    the picture's sides; pixels inside do not count. Without one all do.

    Args:
        images: uint8 [B, 3, H, W].
        metadata: B mappings.
        conditions: uint8 [B, 3, H, W], the pictures that the images were edited from.

    Returns:
        B scores in [-255, 0]. A ValueError takes the place of a score if the region is malformed or is the
        whole picture.
    """
    changes = (images.float() - conditions.float()).abs().mean(dim=1)
    return [_score(change, row.get("region")) for change, row in zip(changes, metadata, strict=True)]


def _score(change: Tensor, region: Any) -> float | ValueError:
    """Average the change [H, W] of each pixel outside of a region."""
    kept = torch.ones_like(change, dtype=torch.bool)
    if region is not None:
        try:
            kept[region_pixels(region, *change.shape)] = False
        except ValueError as error:
            return error
    if not kept.any():
        return ValueError(f"metadata region={region} is the whole picture: nothing is to be kept")
    return -change[kept].mean().item()


def examples() -> list[Any]:
    """Return pairs of pictures: a change inside of the region above the same change outside."""
    before = torch.full((3, 32, 32), 128, dtype=torch.uint8)
    after = before.clone()
    after[:, 4:12, 4:12] = 255
    inside, outside = [0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]
    return [((after, "", {"region": inside}, before), (after, "", {"region": outside}, before))]


keeping.examples = examples  # type: ignore[attr-defined]
keeping.requires = {"region": ([float], None)}  # type: ignore[attr-defined]
keeping.range = (-255.0, 0.0)  # type: ignore[attr-defined]
keeping.license = "Apache-2.0"  # type: ignore[attr-defined]
