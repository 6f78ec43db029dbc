"""FLUX.1 Kontext: FLUX.1 that edits a picture."""

from collections.abc import Sequence

from torch import Tensor

from marble_cli.policy.base import PromptEmbeddings
from marble_cli.policy.families.flux import Flux
from marble_cli.policy.families.latents import encode_kl


class FluxKontext(Flux):
    """A `FluxKontextPipeline`; implements `policy.base.Family`.

    The picture has the size of the result, as in the pipeline with `_auto_resize=False`. By default that
    resizes pictures to about one megapixel; of its own sizes, such as 1024 x 1024, they keep theirs.
    """

    conditions = True
    optional = False
    picture_tokens = 0

    @property
    def condition_shape(self) -> tuple[int, int, int]:
        return self.latent_shape

    def encode(self, prompts: Sequence[str], images: Tensor | None = None) -> PromptEmbeddings:
        tensors = dict(super().encode(prompts).tensors)
        if images is not None:
            tensors["condition"] = encode_kl(self.pipeline.vae, images)
        return PromptEmbeddings(tensors)

    encode_negative = encode
