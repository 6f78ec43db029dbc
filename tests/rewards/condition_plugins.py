"""Reward plugins that look at the pictures which images were edited from."""

from typing import Any, ClassVar

from torch import Tensor


def kept(images: Tensor, conditions: Tensor) -> Tensor:
    """Minus the mean difference from the condition."""
    return -(images.float() - conditions.float()).abs().mean((1, 2, 3))


kept.examples = []  # type: ignore[attr-defined]


def maybe(images: Tensor, conditions: Tensor | None = None) -> Tensor:
    """As `kept` where there are conditions, else 1."""
    return images.new_ones(len(images)).float() if conditions is None else kept(images, conditions)


def whole(batch: Any) -> Tensor:
    """As `maybe`, from the whole batch; it unpacks into three as it always did."""
    images, prompts, metadata = batch
    assert len(images) == len(prompts) == len(metadata)
    return maybe(images, batch.conditions)


def whole_by_place(pictures: Tensor, texts: Any, facts: Any, conditions: Tensor | None = None) -> Tensor:
    """As `maybe`, the parts that every batch has under other names."""
    return maybe(pictures, conditions)


def whole_and_named(batch: Any, conditions: Tensor | None = None) -> Tensor:
    """As `maybe`, from the whole batch and the conditions by name."""
    return maybe(batch.images, conditions)


class Signs:
    """As `kept`, and minus that, for prompts with text."""

    requires = ("text",)
    aspects: ClassVar = ("kept", "changed")

    def __call__(self, conditions: Tensor, images: Tensor) -> dict[str, Tensor]:
        scores = kept(images, conditions)
        return {"kept": scores, "changed": -scores}


def spoils(images: Tensor, conditions: Tensor) -> Tensor:
    """Changes the conditions."""
    conditions.zero_()
    return images.float().mean((1, 2, 3))


def of_one_size(images: Tensor, conditions: Tensor) -> Tensor:
    """Breaks unless the conditions have the size that samples have."""
    return kept(images, conditions[:, :, :64, :64])


def areas(references: Any, images: Tensor) -> list[float]:
    """The pixels of the pictures that an image was edited from, the second ones doubled, and so on."""
    assert len(references) == len(images)
    return [
        sum(place * float(picture[0].numel()) for place, picture in enumerate(pictures, 1))
        for pictures in references
    ]


def either(images: Tensor, conditions: Tensor | None = None, references: Any = None) -> list[float]:
    """As `kept` from one picture each, else the number of pictures."""
    if conditions is not None:
        return kept(images, conditions).tolist()
    return [0.0] * len(images) if references is None else [float(len(pictures)) for pictures in references]
