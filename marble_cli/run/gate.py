"""Gate the KL term by the scores of a step's images."""

from dataclasses import dataclass

from torch import Tensor

from marble_cli.config.aspects import by_aspect
from marble_cli.config.enums import KlGate, Role
from marble_cli.config.schema import RunConfig
from marble_cli.objective.image_weights import ImageWeights, alike
from marble_cli.objective.kl_gate import open_gate
from marble_cli.rewards.scorer import Scores


@dataclass(frozen=True)
class Gate:
    """Compare the trained rewards, without guards, with the watched ones; both by name."""

    trained: list[str]
    watched: list[str]

    def weigh(
        self, weights: ImageWeights | None, scores: Scores, groups: Tensor
    ) -> tuple[ImageWeights, dict[str, float]]:
        """Close the KL term for images that the watched rewards rank no lower; return weights and metrics.

        Args:
            weights: of the step's n images; None if all are trained on alike.
            scores: of the n images, by the rewards of both sides at least.
            groups: [n] int64, the prompt of each image.
        """
        ours, theirs = scores.only(self.trained), scores.only(self.watched)
        opened = open_gate(ours.values, ours.applicable, theirs.values, theirs.applicable, groups)
        gated = (weights or alike(len(groups))).gated(opened)
        return gated, {"loss/kl_share": opened[gated.trained].mean().item()}


def make_gate(config: RunConfig) -> Gate | None:
    """Return the gate of a run's KL term; None if it acts on all images."""
    if config.algorithm.kl_gate is KlGate.none:
        return None
    trained = [name for name, row in by_aspect(config.rewards).items() if row.role is Role.train]
    return Gate(trained, list(by_aspect(config.eval_rewards)))
