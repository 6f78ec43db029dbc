"""Score pictures with one served reward."""

from collections.abc import Callable, Sequence

from torch import Tensor

from marble_cli.config.schema import RewardConfig
from marble_cli.rewards.scorer import Scorer, Scores, open_scorer

Install = Callable[..., None]
Serve = Callable[..., str]
At = Callable[..., RewardConfig]


def submit(scorer: Scorer, images: Tensor, prompts: Sequence[str]) -> Scores:
    n = len(images)
    return scorer.submit(images, prompts, [{"text": "x", "n": i} for i in range(n)], [""] * n).result()


def score(settings: RewardConfig, images: Tensor, prompts: Sequence[str]) -> Scores:
    with open_scorer({"mine": settings}, "cpu") as scorer:
        return submit(scorer, images, prompts)
