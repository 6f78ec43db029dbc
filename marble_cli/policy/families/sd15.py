"""Stable Diffusion 1 and 2, whose UNets predict noise, or v in the 768 px models of Stable Diffusion 2."""

from collections.abc import Sequence

from marble_cli.config.schema import ModelConfig
from marble_cli.policy.base import Images, PromptEmbeddings
from marble_cli.policy.families.variance_preserving import VariancePreserving


class SD15(VariancePreserving):
    """A `StableDiffusionPipeline`."""

    @staticmethod
    def left_out(model: ModelConfig) -> tuple[str, ...]:
        # Rewards take every picture; the checker would black some out.
        unused = VariancePreserving.left_out(model)
        return (*unused, "safety_checker", "requires_safety_checker")

    def encode(self, prompts: Sequence[str], images: Images | None = None) -> PromptEmbeddings:
        tokens, _ = self.pipeline.encode_prompt(
            prompt=list(prompts),
            device=self.encoders[0].device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        return PromptEmbeddings({"tokens": tokens})
