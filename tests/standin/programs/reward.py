"""Build the installed reward NAME with OPTIONS (JSON) on the stand-in and score a batch, as a run does."""

import json
import sys

from marble_cli.config.schema import RewardConfig
from marble_cli.rewards.registry import build
from marble_cli.rewards.scorer import open_scorer
from tests.gpu.test_rewards import samples


def main(name: str, options: str) -> None:
    """Score one batch; what a plugin computes is without meaning here, that it gets to its end is not."""
    reward = build(name, name, json.loads(options), "cpu")
    batch = samples(reward)
    reward.close()
    settings = RewardConfig(plugin=name, options=json.loads(options), retries=0)
    with open_scorer({name: settings}, "cuda") as scorer:
        sources = ["general"] * len(batch.prompts)
        scores = scorer.submit(batch.images, batch.prompts, batch.metadata, sources).result()
    assert scores.values.shape == (1, len(sources)), scores


main(*sys.argv[1:])
