"""A small family that is given pictures."""

from typing import Any

import torch

from marble_cli.policy.base import Images, PromptEmbeddings
from marble_cli.policy.editing import name_latents
from marble_cli.policy.families.sd3 import SD3


class EditingSD3(SD3):
    """SD3 that is also given pictures, at a fraction of their sizes."""

    conditions, optional, most_pictures = True, False, None

    def condition_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return 3, -(-height // 8), -(-width // 8)

    def picture_tokens(self, width: int, height: int) -> int:
        return 0

    def encode(self, prompts: Any, images: Images | None = None) -> PromptEmbeddings:
        assert images is not None
        assert {picture.dtype for pictures in images for picture in pictures} == {torch.uint8}
        small = [[picture[None, :, ::8, ::8].float() for picture in pictures] for pictures in images]
        return PromptEmbeddings({**super().encode(prompts).tensors, **name_latents(small)})

    encode_negative = encode
