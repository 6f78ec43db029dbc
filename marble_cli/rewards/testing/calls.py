"""Call a reward with samples, as the checks of the contract and the measurements do."""

import torch
from torch import Tensor

from marble_cli.errors import RewardError
from marble_cli.rewards.answers import parse_aspects
from marble_cli.rewards.api import Batch
from marble_cli.rewards.call_thread import copy_batch
from marble_cli.rewards.registry import Reward
from marble_cli.rewards.worker import describe_failure

MANY = 24  # images in a large batch


class ContractError(Exception):
    """A reward breaks the contract; the message describes how."""


class CheckImpossible(Exception):  # noqa: N818 - no error of the reward
    """A check cannot be made on this machine or for this reward; the message gives the reason."""


def describe_error(error: BaseException) -> str:
    """Return the message of an error, with its type if the plugin raised it."""
    if isinstance(error, ContractError | RewardError):
        return str(error)
    return describe_failure(error)


def score_copy(reward: Reward, batch: Batch) -> Tensor:
    """Score a copy of the batch, as `call_reward`, so that a reward that changes it spoils no other check."""
    return call_reward(reward, copy_batch(batch))


def call_reward(reward: Reward, batch: Batch) -> Tensor:
    """Score a batch as a worker does: [B] float64, or [B, A] if the reward has A aspects.

    Raises:
        RewardError: the answer is not B numbers, or B numbers per aspect.
        ContractError: the reward failed on an image.
    """
    count, aspects = len(batch.images), reward.declaration.aspects
    parts = parse_aspects(reward.name, reward.call(batch), count, aspects, aspects)
    for _, reasons in parts:
        for reason in reasons.values():
            raise ContractError(f"it failed on an image: {describe_error(reason)}")
    scores = torch.stack([part for part, _ in parts], dim=1)
    return scores if aspects else scores[:, 0]


def place(reward: Reward, mask: Tensor) -> str:
    """Name the first image for which a mask as `call_reward` returns scores is true, and its aspect."""
    image, *column = (int(index) for index in mask.nonzero()[0])
    aspect = f", aspect {reward.declaration.aspects[column[0]]}," if column else ""
    return f"image {image}{aspect}"


def repeat_samples(batch: Batch) -> Batch:
    """Return a large batch that repeats the samples of `batch`."""
    return batch.rows([i % len(batch.prompts) for i in range(MANY)])
