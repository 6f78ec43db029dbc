"""Choose the images that a step trains on, and their weights."""

from marble_cli.config.enums import DeadGroups
from marble_cli.objective.group_signal import dead_images, group_signal
from marble_cli.objective.image_weights import ImageWeights, drop
from marble_cli.step.reward_signal import Signal


def choose_images(signal: Signal, dead_groups: DeadGroups) -> ImageWeights | None:
    """Return the weights of the step's n images; None if all are trained on alike.

    If all groups are dead, none is left out: the step is that of `rollout.dead_groups=keep`.

    Args:
        signal: of the trained rewards.
        dead_groups: whether the images of groups without signal are trained on.
    """
    if dead_groups is DeadGroups.keep:
        return None
    groups = group_signal(signal.rewards, signal.applicable, signal.groups)
    return drop(dead_images(groups, signal.groups), signal.applicable.any(0))
