"""Qwen-Image-Edit, and Qwen-Image-Edit-Plus (2509 and 2511) with one picture."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions
from PIL import Image
from torch import Tensor

from marble_cli.config.resolution import read_resolution
from marble_cli.config.schema import ModelConfig
from marble_cli.policy.base import PromptEmbeddings
from marble_cli.policy.diffusers_types import Pipeline
from marble_cli.policy.families.masks import pad_prompts
from marble_cli.policy.families.qwen_image import QwenImage


class QwenImageEdit(QwenImage):
    """A `QwenImageEditPipeline`; implements `policy.base.Family`.

    As in the pipeline, the VAE and the text encoder see the picture with an area of 1024 x 1024 pixels and
    sides that are multiples of 32, whatever the size of the result.
    """

    conditions = True
    optional = False
    latent_area = seen_area = 1024 * 1024

    def __init__(self, pipeline: Pipeline, model: ModelConfig) -> None:
        super().__init__(pipeline, model)
        size = read_resolution(model.resolution)
        ratio = size.width / size.height
        # (width, height) of the picture for the VAE, and for the text encoder
        self.encoded_size: tuple[int, int] = calculate_dimensions(self.latent_area, ratio)
        self.seen_size: tuple[int, int] = calculate_dimensions(self.seen_area, ratio)
        width, height = (side // pipeline.vae_scale_factor for side in self.encoded_size)
        self.condition_shape = (self.latent_shape[0], height, width)
        self.picture_tokens = self._count_picture_tokens()

    def _count_picture_tokens(self) -> int:
        """Count the tokens that the text encoder makes of a picture; a plan has no processor to ask."""
        (width, height), processor = self.seen_size, self.pipeline.components["processor"]
        if processor is not None:
            seen = processor.image_processor
            tokens: int = seen.get_number_of_image_patches(height, width, {}) // seen.merge_size**2
            return tokens
        vision = self.encoders[0].config.vision_config
        side: int = vision.patch_size * vision.spatial_merge_size
        return round(width / side) * round(height / side)

    def encode(self, prompts: Sequence[str], images: Tensor | None = None) -> PromptEmbeddings:
        # One by one: a picture has many tokens. Those of the prompt follow them.
        assert images is not None
        pictures = [Image.fromarray(one.permute(1, 2, 0).contiguous().numpy()) for one in images]
        rows = [self._encode_seen(*row) for row in zip(prompts, pictures, strict=True)]
        length = self.model.max_sequence_length + self.picture_tokens
        encoded = pad_prompts([row[:length] for row in rows], length)
        condition = torch.cat([self._encode_picture(picture) for picture in pictures])
        return PromptEmbeddings({**encoded.tensors, "condition": condition}, encoded.lengths)

    encode_negative = encode

    def _encode_seen(self, prompt: str, picture: Image.Image) -> Tensor:
        """Return the tokens [l, D] of a picture and a prompt."""
        width, height = self.seen_size
        tokens, _ = self.pipeline.encode_prompt(
            prompt=[prompt],
            image=[self.pipeline.image_processor.resize(picture, height, width)],
            device=self.encoders[0].device,
        )
        first: Tensor = tokens[0]
        return first

    def _encode_picture(self, picture: Image.Image) -> Tensor:
        """Return the latents [1, C, H, W] of a picture: the mode of their distribution."""
        vae, (width, height) = self.pipeline.vae, self.encoded_size
        pixels = self.pipeline.image_processor.preprocess(picture, height, width)[:, :, None]
        latents: Any = vae.encode(pixels.to(vae.device, vae.dtype), return_dict=False)[0].mode()[:, :, 0]
        mean, std = self.latent_statistics(latents)
        normal: Tensor = (latents - mean) / std
        return normal


class QwenImageEditPlus(QwenImageEdit):
    """A `QwenImageEditPlusPipeline`, which is given one picture; its text encoder sees 384 x 384 pixels."""

    seen_area = 384 * 384
