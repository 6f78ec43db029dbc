"""Run by every rank of tests/distributed/test_image_shares.py: train with a groupwise reward.

Arguments: the configuration's file.
"""

import os
import sys

from torch import Tensor

from marble_cli.config.compose import compose
from marble_cli.rewards.builtin import colorfulness
from marble_cli.run.train import train

config = compose([], sys.argv[1])
size = config.rollout.group_size


class AboveItsGroup:
    """Brightness less the mean of the prompt's images, which a call has to hold all and once."""

    groupwise = True

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        scores = images.double().mean(dim=(1, 2, 3))
        if len(images) % size == 0:  # not the trial before the first step
            assert len(set(prompts)) * size == len(prompts), prompts
            scores = (scores.view(-1, size) - scores.view(-1, size).mean(1, keepdim=True)).flatten()
        return scores


colorfulness.colorfulness = AboveItsGroup  # type: ignore[assignment]
assert train(config, resume="auto") == 0
print("done", os.environ["RANK"])
