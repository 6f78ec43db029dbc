"""The `unifiedreward` reward: a vision-language model trained to score pictures, asked as RL recipes do."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from marble_cli.rewards.testing.pictures import prompt_examples
from marble_reward_judge.judge import Judge, Scores
from marble_reward_judge.score import WHOLE
from marble_reward_judge.settings import ServerSettings

# The model was trained on this question; it is spelled exactly as in Flow-GRPO.
QUESTION = (
    "<image>\nYou are given a text caption and a generated image based on that caption. Your task is to "
    "evaluate this image based on two key criteria:\n1. Alignment with the Caption: Assess how well this "
    "image aligns with the provided caption. Consider the accuracy of depicted objects, their "
    "relationships, and attributes as described in the caption.\n2. Overall Image Quality: Examine the "
    "visual quality of this image, including clarity, detail preservation, color accuracy, and overall "
    "aesthetic appeal.\nBased on the above criteria, assign a score from 1 to 5 after 'Final "
    "Score:'.\nYour task is provided as follows:\nText Caption: [{prompt}]"
)
PATTERN = rf"Final Score:[\s*]*({WHOLE})"
LOW, HIGH = 1.0, 5.0


@dataclass(repr=False, eq=False)
class UnifiedReward(ServerSettings):
    """UnifiedReward's score of a picture for its prompt, by alignment and quality: 1 to 5, divided by 5."""

    range = (LOW / HIGH, 1.0)
    license = "Apache-2.0; weights MIT (CodeGoat24/UnifiedReward-7b-v1.5)"
    citation = "UnifiedReward, arXiv 2503.05236"
    examples = staticmethod(prompt_examples)

    model: str = "UnifiedReward-7b-v1.5"

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
        )

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Scores:
        """Score a batch.

        Args:
            images: uint8 [B, 3, H, W]; sent at this size.
            prompts: B prompts.

        Returns:
            B scores in [0.2, 1]; an error takes the place of a score that could not be had.

        Raises:
            ServerError: the server refuses the key, or knows no such model or address.
        """
        scores = self.judge(images, prompts)
        assert isinstance(scores, list)  # without aspects
        return divided(scores)


def divided(scores: Scores) -> Scores:
    """Divide scores by the highest."""
    return [score if isinstance(score, Exception) else score / HIGH for score in scores]
