"""The `unifiedreward2` reward: UnifiedReward 2.0, whose one answer scores alignment, coherence and style."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from marble_cli.rewards.testing.pictures import prompt_examples
from marble_reward_judge.judge import Judge, Scores
from marble_reward_judge.score import WHOLE
from marble_reward_judge.settings import ServerSettings
from marble_reward_judge.unifiedreward import HIGH, LOW, divided

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
PATTERN = r"(?i){aspect} Score \(1-5\):[\s*]*(" + WHOLE + ")"


@dataclass(repr=False, eq=False)
class UnifiedReward2(ServerSettings):
    """UnifiedReward 2.0's scores of alignment, coherence and style: each 1 to 5, divided by 5."""

    aspects = ("alignment", "coherence", "style")
    range = (LOW / HIGH, 1.0)
    license = "Apache-2.0; weights MIT (CodeGoat24/UnifiedReward-2.0-qwen3vl-8b)"
    citation = "UnifiedReward, arXiv 2503.05236"

    model: str = "UnifiedReward-2.0-qwen3vl-8b"

    def __post_init__(self) -> None:
        """Check and keep the settings of the server; nothing is sent.

        Raises:
            ValueError: an option is invalid, or the variable with the key is not set or holds no key.
        """
        self.judge = Judge(
            **self.server_options(),
            template=QUESTION,
            pattern=PATTERN,
            low=LOW,
            high=HIGH,
            raw=True,
            aspects=self.aspects,
        )

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Scores]:
        """Score a batch.

        Args:
            images: uint8 [B, 3, H, W]; sent at this size.
            prompts: B prompts.

        Returns:
            B scores in [0.2, 1] for each aspect; an error takes the place of a score that could not be had.

        Raises:
            ServerError: the server refuses the key, or knows no such model or address.
        """
        scores = self.judge(images, prompts)
        assert isinstance(scores, dict)  # with aspects
        return {aspect: divided(own) for aspect, own in scores.items()}

    @staticmethod
    def examples() -> dict[str, Any]:
        """Return pairs for alignment alone: nothing drawn is surely more coherent or of better style."""
        return {"alignment": prompt_examples()}
