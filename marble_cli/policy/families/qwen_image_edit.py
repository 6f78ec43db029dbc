"""Qwen-Image-Edit, which starts from one picture, and -Plus (2509 and 2511), which takes any number."""

from collections.abc import Sequence
from typing import Any

from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions
from PIL import Image
from torch import Tensor

from marble_cli.policy.base import Images, PromptEmbeddings
from marble_cli.policy.editing import name_latents
from marble_cli.policy.families.masks import pad_prompts
from marble_cli.policy.families.qwen_image import QwenImage


class QwenImageEdit(QwenImage):
    """A `QwenImageEditPipeline`.

    As in the pipeline, the VAE and the text encoder see a picture with an area of 1024 x 1024 pixels and
    sides that are multiples of 32, whatever the size of the result.
    """

    conditions = True
    optional = False
    most_pictures: int | None = 1
    latent_area = seen_area = 1024 * 1024

    def encoded_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) at which the VAE sees a picture of this size."""
        size: tuple[int, int] = calculate_dimensions(self.latent_area, width / height)
        return size

    def seen_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) at which the text encoder sees a picture of this size."""
        size: tuple[int, int] = calculate_dimensions(self.seen_area, width / height)
        return size

    def condition_shape(self, width: int, height: int) -> tuple[int, int, int]:
        columns, rows = (side // self.pipeline.vae_scale_factor for side in self.encoded_size(width, height))
        return self.latent_shape[0], rows, columns

    def picture_tokens(self, width: int, height: int) -> int:
        """Count the tokens that the text encoder makes of a picture; a plan has no processor to ask."""
        (columns, rows), processor = self.seen_size(width, height), self.pipeline.components["processor"]
        if processor is not None:
            seen = processor.image_processor
            tokens: int = seen.get_number_of_image_patches(rows, columns, {}) // seen.merge_size**2
            return tokens
        vision = self.encoders[0].config.vision_config
        side: int = vision.patch_size * vision.spatial_merge_size
        return round(columns / side) * round(rows / side)

    def encode(self, prompts: Sequence[str], images: Images | None = None) -> PromptEmbeddings:
        # One by one: pictures have many tokens. Those of the prompt follow them.
        assert images is not None
        rows = [
            [Image.fromarray(one.permute(1, 2, 0).contiguous().numpy()) for one in pictures]
            for pictures in images
        ]
        tokens = [self._encode_seen(*row) for row in zip(prompts, rows, strict=True)]
        length = self.model.max_sequence_length + sum(self.picture_tokens(*one.size) for one in rows[0])
        encoded = pad_prompts([row[:length] for row in tokens], length)
        latents = name_latents([[self._encode_picture(one) for one in pictures] for pictures in rows])
        return PromptEmbeddings({**encoded.tensors, **latents}, encoded.lengths)

    def _encode_seen(self, prompt: str, pictures: Sequence[Image.Image]) -> Tensor:
        """Return the tokens [l, D] of pictures and a prompt."""
        resize, sizes = self.pipeline.image_processor.resize, [self.seen_size(*one.size) for one in pictures]
        tokens, _ = self.pipeline.encode_prompt(
            prompt=[prompt],
            image=[resize(one, rows, columns) for one, (columns, rows) in zip(pictures, sizes, strict=True)],
            device=self.encoders[0].device,
        )
        first: Tensor = tokens[0]
        return first

    def _encode_picture(self, picture: Image.Image) -> Tensor:
        """Return the latents [1, C, H, W] of a picture: the mode of their distribution."""
        vae, (width, height) = self.pipeline.vae, self.encoded_size(*picture.size)
        pixels = self.pipeline.image_processor.preprocess(picture, height, width)[:, :, None]
        latents: Any = vae.encode(pixels.to(vae.device, vae.dtype), return_dict=False)[0].mode()[:, :, 0]
        mean, std = self.latent_statistics(latents)
        normal: Tensor = (latents - mean) / std
        return normal


class QwenImageEditPlus(QwenImageEdit):
    """A `QwenImageEditPlusPipeline`, which takes several pictures; its text encoder sees 384 x 384 pixels."""

    most_pictures = None
    seen_area = 384 * 384
