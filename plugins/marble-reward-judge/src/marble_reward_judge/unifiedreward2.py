"""The `unifiedreward2` reward: UnifiedReward 2.0, whose one answer scores alignment, coherence and style."""

from collections.abc import Mapping
from typing import Any

from marble_cli.rewards.testing.pictures import prompt_examples
from marble_reward_judge.judge import Judge
from marble_reward_judge.unifiedreward import HIGH, LOW

# The model was trained on this question (point_score_ACS_image_generation.py of CodeGoat24/UnifiedReward).
QUESTION = (
    "You are presented with a generated image and its associated text caption. Your task is to analyze the "
    "image across multiple dimensions in relation to the caption. Specifically:\n"
    "Provide overall assessments for the image along the following axes (each rated from 1 to 5):\n"
    "- Alignment Score: How well the image matches the caption in terms of content.\n"
    "- Coherence Score: How logically consistent the image is (absence of visual glitches, object "
    "distortions, etc.).\n"
    "- Style Score: How aesthetically appealing the image looks, regardless of caption accuracy.\n\n"
    "Output your evaluation using the format below:\n\n"
    "Alignment Score (1-5): X\nCoherence Score (1-5): Y\nStyle Score (1-5): Z\n\n"
    "Your task is provided as follows:\nText Caption: [{prompt}]"
)
PATTERN = r"(?i){aspect} Score \(1-5\):[\s*]*(\d+(?:\.\d+)?(?:\s*/\s*\d+)?)"


class UnifiedReward2(Judge):
    """UnifiedReward 2.0's scores of alignment, coherence and style: each 1 to 5, divided by 5."""

    aspects = ("alignment", "coherence", "style")
    range = (LOW / HIGH, 1.0)
    license = "Apache-2.0; weights MIT (CodeGoat24/UnifiedReward-2.0-qwen3vl-8b)"
    citation = "UnifiedReward, arXiv 2503.05236"

    def __init__(
        self,
        base_url: str,
        model: str = "UnifiedReward-2.0-qwen3vl-8b",
        api_key_env: str | None = None,
        temperature: float | None = 0.0,
        max_tokens: int | None = 512,
        concurrency: int = 16,
        request_timeout: float = 60.0,
        attempts: int = 4,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        """Check and keep the settings of the server; nothing is sent.

        Args: as for `Judge`.

        Raises:
            ValueError: an option is invalid, or the variable with the key is not set or holds no key.
        """
        super().__init__(
            base_url,
            model,
            template=QUESTION,
            pattern=PATTERN,
            low=LOW,
            high=HIGH,
            raw=True,
            api_key_env=api_key_env,
            temperature=temperature,
            max_tokens=max_tokens,
            concurrency=concurrency,
            request_timeout=request_timeout,
            attempts=attempts,
            extra_body=extra_body,
            aspects=self.aspects,
        )
        self.scale, self.range = HIGH, (LOW / HIGH, 1.0)

    @staticmethod
    def examples() -> dict[str, Any]:
        """Return pairs for alignment alone: nothing drawn is surely more coherent or of better style."""
        return {"alignment": prompt_examples()}
