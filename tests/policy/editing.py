"""A small family that is given pictures, and whose velocities depend on them."""

from typing import Any

import torch
from torch import Tensor

from marble_cli.policy.base import Images, PromptEmbeddings
from marble_cli.policy.editing import latents_of, name_latents
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

    def velocity(self, xt: Tensor, t: Tensor, embeddings: PromptEmbeddings) -> Tensor:
        levels = [part.mean((1, 2, 3)) / 255 for part in latents_of(embeddings.tensors)]
        added = sum(0.1 * place * level for place, level in enumerate(levels, 1))
        return super().velocity(xt, t, embeddings) + added[:, None, None, None]
