"""Tell which prompt groups say something about a reward: advantages compare the images of a prompt.

A group whose scores are all equal, or in which fewer than two images have one, has advantages of zero only:
it has no signal of that reward. A group without signal of any reward, guards included, is dead.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GroupSignal:
    """What K rewards say of G prompt groups, in the order of the groups' numbers.

    Attributes:
        applies: [K, G] bool, true where the reward scored an image of the group.
        differs: [K, G] bool, true where two of these scores differ.
    """

    applies: Tensor
    differs: Tensor

    @property
    def dead(self) -> Tensor:
        """[G] bool, true where no reward has signal."""
        return ~self.differs.any(0)

    def flat_share(self, k: int) -> float | None:
        """Return the share without signal of the groups that reward k applies to; None if there are none."""
        applies = self.applies[k]
        return (applies & ~self.differs[k]).sum().item() / int(applies.sum()) if applies.any() else None


def group_signal(rewards: Tensor, applicable: Tensor, groups: Tensor) -> GroupSignal:
    """Compare the scores of each group.

    Args:
        rewards: [K, n] scores; the value is ignored where not applicable.
        applicable: [K, n] bool.
        groups: [n] int64, the prompt of each image.
    """
    group = torch.unique(groups, return_inverse=True)[1].to(rewards.device).expand_as(applicable)
    applies = applicable.new_zeros(len(rewards), _count(group)).int()
    applies = applies.scatter_reduce(1, group, applicable.int(), "amax") > 0
    return GroupSignal(applies, scores_differ(rewards, applicable, group))


def dead_images(signal: GroupSignal, groups: Tensor) -> Tensor:
    """Return [n] bool, true for the images of dead groups.

    Args:
        signal: of the groups.
        groups: [n] int64, the prompt of each image.
    """
    return signal.dead[torch.unique(groups, return_inverse=True)[1]]


def scores_differ(values: Tensor, applicable: Tensor, group: Tensor) -> Tensor:
    """Return [K, G] bool, true where two applicable scores of a group differ.

    Args:
        values: [K, n] scores.
        applicable: [K, n] bool.
        group: [K, n] int64, each image's group among 0 to G - 1.
    """
    slots = values.new_zeros(len(values), _count(group))
    low = torch.where(applicable, values, torch.inf)
    high = torch.where(applicable, values, -torch.inf)
    least = slots.scatter_reduce(1, group, low, "amin", include_self=False)
    most = slots.scatter_reduce(1, group, high, "amax", include_self=False)
    return most > least


def _count(group: Tensor) -> int:
    return int(group.max()) + 1 if group.numel() else 1
