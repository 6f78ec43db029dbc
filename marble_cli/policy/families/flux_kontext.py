"""FLUX.1 Kontext: FLUX.1 that edits a picture."""

from collections.abc import Sequence

import torch

from marble_cli.policy.base import Images, PromptEmbeddings
from marble_cli.policy.families.flux import Flux
from marble_cli.policy.families.latents import encode_kl


class FluxKontext(Flux):
    """A `FluxKontextPipeline`.

    The picture has the size of the result, as in the pipeline with `_auto_resize=False`. By default that
    resizes pictures to about one megapixel; of its own sizes, such as 1024 x 1024, they keep theirs.
    """

    conditions = True
    optional = False
    most_pictures = 1

    def condition_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return self.latent_shape

    def picture_tokens(self, width: int, height: int) -> int:
        return 0

    def encode(self, prompts: Sequence[str], images: Images | None = None) -> PromptEmbeddings:
        tensors = dict(super().encode(prompts).tensors)
        if images is not None:
            tensors["condition"] = encode_kl(self.pipeline.vae, torch.stack([one for (one,) in images]))
        return PromptEmbeddings(tensors)
