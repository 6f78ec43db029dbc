"""Define `Batch`, what a reward is given. This module imports nothing heavy."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from marble_cli.errors import RewardError

if TYPE_CHECKING:
    from torch import Tensor


class SeveralPicturesError(RewardError):
    """A reward reads one picture per image, and an image was edited from several."""


class _Samples(NamedTuple):
    images: "Tensor"
    prompts: list[str]
    metadata: list[Mapping[str, Any]]


class Batch(_Samples):
    """B images, uint8 [B, 3, H, W] on the CPU, with their prompts and metadata.

    It unpacks into these three. The pictures that the images were edited from are given as `conditions`, if
    each image was edited from one, or as `references`, of which single ones have the shape of the images.
    `frames` are videos [B, F, 3, H, W] whose middle frames the images are, or None.
    """

    single: "Tensor | None" = None  # the pictures [B, 3, H, W], if each image has one
    several: "list[list[Tensor]] | None" = None  # those of each image, if some image has several
    frames: "Tensor | None" = None

    def __new__(
        cls,
        images: "Tensor",
        prompts: list[str],
        metadata: list[Mapping[str, Any]],
        conditions: "Tensor | None" = None,
        frames: "Tensor | None" = None,
        references: "Sequence[Sequence[Tensor]] | None" = None,
    ) -> "Batch":
        batch = super().__new__(cls, images, prompts, metadata)
        batch.single, batch.frames = conditions, frames
        if conditions is None and references is not None:
            batch._take([list(pictures) for pictures in references])
        return batch

    def _take(self, references: "list[list[Tensor]]") -> None:
        if any(len(pictures) > 1 for pictures in references):
            self.several = references
        else:
            self.single = self.images.new_empty(self.images.shape)
            for place, (picture,) in zip(self.single, references, strict=True):
                place.copy_(picture)

    @property
    def conditions(self) -> "Tensor | None":
        """The picture that each image was edited from, uint8 [B, 3, H, W]; None if there is none.

        Raises:
            SeveralPicturesError: some image was edited from several.
        """
        if self.several is not None:
            raise SeveralPicturesError(
                "the reward reads `conditions`, one picture per image, and some of these images were edited "
                "from several. Expected it to read `references`, or to name `conditions` as a parameter; it "
                "does not apply to such images then."
            )
        return self.single

    @property
    def references(self) -> "list[list[Tensor]] | None":
        """The pictures that each image was edited from, uint8 [3, h, w]; None if there are none."""
        return self.several if self.single is None else [[picture] for picture in self.single]

    @property
    def picture_counts(self) -> list[int]:
        """The number of pictures that each image was edited from."""
        return [0] * len(self.prompts) if (found := self.references) is None else [*map(len, found)]

    def _replace(self, **values: Any) -> "Batch":
        """Return a batch with other values of some of its parts; `conditions` also replace `references`."""
        pictures: dict[str, Any] = {"conditions": self.single, "references": self.several}
        if pictures.keys() & values:
            pictures = dict.fromkeys(pictures)
        return Batch(**{**self._asdict(), **pictures, "frames": self.frames, **values})

    def rows(self, index: Sequence[int]) -> "Batch":
        """Return the samples at `index`, in that order, some perhaps repeatedly; no copy if these are all."""
        index = list(index)
        if index == list(range(len(self.prompts))):
            return self
        prompts, metadata = [self.prompts[i] for i in index], [self.metadata[i] for i in index]
        conditions = None if self.single is None else self.single[index]
        references = None if self.several is None else [self.several[i] for i in index]
        frames = None if self.frames is None else self.frames[index]
        return Batch(self.images[index], prompts, metadata, conditions, frames, references)
