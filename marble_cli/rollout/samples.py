"""The images of one step on one rank: latents, pictures, prompts and pending scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from marble_cli.data.prompts import Prompt
from marble_cli.distributed.ranks import Ranks
from marble_cli.policy.base import RepeatedEmbeddings
from marble_cli.rewards.scorer import PendingScores, Scores


@dataclass(frozen=True)
class Samples:
    """The n images of one step on this rank, of any sizes, with their latents, prompts and pending scores.

    Attributes:
        x0: n latents [C, H, W] float32.
        images: n pictures [3, H, W] or videos [F, 3, H, W], uint8.
        embeddings: of the prompts.
        prompts: of the images.
        pending: scores, batch by batch.
        drawn: [n] int64, the row of each image in the order in which batches drew them.
        negatives: the embeddings of the negative prompts, if training needs them.
    """

    x0: Sequence[Tensor]
    images: Sequence[Tensor]
    embeddings: RepeatedEmbeddings
    prompts: list[Prompt]
    pending: list[PendingScores]
    drawn: Tensor
    negatives: RepeatedEmbeddings | None = None

    def scores(self, ranks: Ranks) -> Scores:
        """Wait for the rewards and return the scores of all ranks' images, in the order of ranks and rows.

        Raises:
            RewardError: a plugin broke its contract on this rank.
            PeerError: a plugin broke its contract on another rank.
        """
        with ranks.raise_together():
            parts = [part.result() for part in self.pending]

        def gather(field: str) -> Tensor:
            own = torch.cat([getattr(part, field) for part in parts], dim=1)
            return ranks.all_gather(own[:, self.drawn.argsort()].double())

        return Scores(parts[0].names, gather("values"), gather("applicable").bool(), gather("failed").bool())
