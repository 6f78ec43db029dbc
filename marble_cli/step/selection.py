"""Choose the images that a step trains on, and their weights."""

import torch

from marble_cli.config.enums import DeadGroups
from marble_cli.distributed.ranks import Ranks
from marble_cli.objective.group_signal import dead_images, group_signal
from marble_cli.objective.image_weights import ImageWeights, alike, drop
from marble_cli.objective.inclusion import draw_systematically, image_signal, inclusion_probabilities
from marble_cli.seeds import generator
from marble_cli.step.reward_signal import Signal


def choose_images(
    signal: Signal, dead_groups: DeadGroups, fraction: float, seed: int, step: int, ranks: Ranks
) -> ImageWeights | None:
    """Return the weights of the step's n images; None if all are trained on alike.

    Args:
        signal: of the trained rewards.
        dead_groups: whether the images of dead groups are trained on. If all groups are dead, none is left
            out: the step is that of `rollout.dead_groups=keep`.
        fraction: share of the images left that is drawn, by their signal, at least one.
        seed: of the run.
        step: with `seed` it decides the draw.
        ranks: which all get the main rank's weights.
    """
    weights = None
    if dead_groups is not DeadGroups.keep:
        groups = group_signal(signal.rewards, signal.applicable, signal.groups)
        weights = drop(dead_images(groups, signal.groups), signal.applicable.any(0))
    if fraction == 1:
        return weights
    weights = weights or alike(len(signal.groups))
    sizes = image_signal(signal.optimality, signal.applicable, weights.trained)
    probabilities = inclusion_probabilities(sizes, max(1, round(fraction * int(weights.trained.sum()))))
    start = torch.rand((), generator=generator(seed, "select", step), dtype=torch.float64).item()
    chosen = weights.sampled(draw_systematically(probabilities, start), probabilities)
    # Processors may round a probability differently.
    return ImageWeights(*ranks.broadcast(torch.stack([chosen.signal, chosen.shared, chosen.kl])))
