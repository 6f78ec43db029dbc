"""A small family that is given pictures."""

from typing import Any

import torch
from torch import Tensor

from marble_cli.policy.base import PromptEmbeddings
from marble_cli.policy.families.sd3 import SD3


class EditingSD3(SD3):
    """SD3 that is also given a picture, at a fraction of its size."""

    conditions, optional = True, False

    def encode(self, prompts: Any, images: Tensor | None = None) -> PromptEmbeddings:
        assert images is not None
        assert images.dtype is torch.uint8
        encoded = super().encode(prompts).tensors
        return PromptEmbeddings({**encoded, "picture": images[:, :, ::8, ::8].float()})

    encode_negative = encode
