"""The `geneval` reward: the objects of a prompt, their counts, colours and positions."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from marble_cli.rewards.testing.pictures import photograph
from marble_reward_geneval import rules
from marble_reward_geneval.colors import ColorClassifier
from marble_reward_geneval.detector import Detector, Found
from marble_reward_geneval.request import Request, read_request
from marble_reward_geneval.rules import Verdict

MODES = {"soft": rules.soft, "strict": rules.strict}


class GenEval:
    """Share of the prompt's objects, counts, colours and positions that the picture shows; 1 is all."""

    requires: ClassVar = {
        "include": [{"class": str, "count": int, "color": str | None, "position": list | None}],
        "exclude": ([{"class": str, "count": int}], None),
        "tag": str | None,
    }
    range = (None, 1.0)
    license = "Apache-2.0; weights under their own licences (Mask2Former: its model card; CLIP: MIT)"
    citation = (
        "GenEval, arXiv 2310.11513; soft score: Flow-GRPO, arXiv 2505.05470; Mask2Former, arXiv 2112.01527"
    )
    loads: ClassVar = {
        "detector": {"facebook/mask2former-swin-small-coco-instance": 68_741_083},
        "clip": {"openai/clip-vit-large-patch14": 427_616_513},
    }

    def __init__(
        self,
        detector: str = "facebook/mask2former-swin-small-coco-instance",
        clip: str = "openai/clip-vit-large-patch14",
        mode: str = "soft",
        threshold: float = 0.3,
        counting_threshold: float = 0.9,
        max_objects: int = 16,
        max_overlap: float = 1.0,
        position_threshold: float = 0.1,
        batch_size: int = 8,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Load the detector and the CLIP model that names colours.

        Args:
            detector: a folder or hub repository of Mask2Former, MaskFormer or an object detector of
                transformers.
            clip: a folder or hub repository of a CLIP model.
            mode: `soft`, a mean of credits, or `strict`, 1 if every requirement holds, else 0.
            threshold: an object's score must be above this.
            counting_threshold: the same for prompts tagged `counting`.
            max_objects: largest number of objects per class.
            max_overlap: intersection over union at which the less certain of two boxes is dropped; 1 drops
                none.
            position_threshold: share of both sizes by which centres must differ before a position counts.
            batch_size: pictures per forward pass of the detector.
            device: where to compute.
            dtype: precision of the models.

        Raises:
            OSError: a model cannot be found or fetched.
            ValueError: there is no such mode, or the detector knows none of the classes.
        """
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}: expected one of {', '.join(MODES)}")
        self.judge, self.margin = MODES[mode], position_threshold
        self.threshold, self.counting_threshold = threshold, counting_threshold
        self.max_objects, self.max_overlap = max_objects, max_overlap
        self.detector = Detector(detector, device, dtype, batch_size)
        self.colors = ColorClassifier(clip, device, dtype)

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> list[float | Exception]:
        """Score a batch.

        Args:
            images: uint8 [B, 3, H, W].
            prompts: B prompts, for messages.
            metadata: B mappings, each with `include` in GenEval's format.

        Returns:
            B scores of at most 1. A ValueError takes the place of a score if the metadata is malformed, or
            has a requirement that cannot be judged, and a FloatingPointError if a model overflowed.
        """
        verdicts = self.verdicts(images, prompts, metadata)
        return [v.score if isinstance(v, Verdict) else v for v in verdicts]

    def verdicts(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> list[Verdict | Exception]:
        """Score a batch with reasons; arguments as in a call."""
        requests = [self._request(*row) for row in zip(prompts, metadata, strict=True)]
        found = self.detector(images, min(self.threshold, self.counting_threshold))
        return [self._verdict(*row) for row in zip(images, requests, found, strict=True)]

    @staticmethod
    def examples() -> list[Any]:
        """Return a pair: the photograph of a cat for a cat and no dog, above itself for a dog and no cat.

        The detector may find the cat twice, which costs the soft score's count, but not the order.
        """
        cat, dog = ({"class": name, "count": 1} for name in ("cat", "dog"))
        rows = (("a photo of a cat", cat, dog), ("a photo of a dog", dog, cat))
        picture = photograph()
        better, worse = (
            (picture, prompt, {"include": [wanted], "exclude": [unwanted]})
            for prompt, wanted, unwanted in rows
        )
        return [(better, worse)]

    def _request(self, prompt: str, metadata: Mapping[str, Any]) -> Request | ValueError:
        try:
            return read_request(prompt, metadata, self.detector.classes)
        except ValueError as error:
            return error

    def _verdict(self, image: Tensor, request: Request | ValueError, found: Found) -> Verdict | Exception:
        if isinstance(request, ValueError):
            return request
        if isinstance(found, FloatingPointError):
            return found
        threshold = self.counting_threshold if request.counting else self.threshold
        selected = {
            name: rules.select(things, threshold, self.max_objects, self.max_overlap)
            for name, things in found.items()
        }
        try:
            return self.judge(
                request, selected, lambda things, name: self.colors(image, things, name), self.margin
            )
        except FloatingPointError as error:  # of a colour
            return error
