"""Which prompts a step trains on: a pure function of seed and step, so that ranks and restarts agree."""

from collections.abc import Mapping

import torch

from marble_cli.data.prompts import Prompt
from marble_cli.randomness import generator


class PromptSampler:
    """Draws `groups` prompts a step from several sources, in shares of their `weights`.

    Over the steps each source's share is exact to less than one prompt. Within a source every prompt is
    used once before any is used again.
    """

    def __init__(
        self, sources: Mapping[str, list[Prompt]], weights: Mapping[str, float], groups: int, seed: int
    ) -> None:
        self.sources, self.groups, self.seed = sources, groups, seed
        total = sum(weights[name] for name in sources)
        self.shares = {name: weights[name] / total for name in sources}

    def step(self, step: int) -> list[Prompt]:
        """The prompts of the 1-based `step`, one a group, in a seeded order."""
        before, after = self._served(step - 1), self._served(step)
        chosen = [
            self._prompt(name, place) for name in self.sources for place in range(before[name], after[name])
        ]
        order = torch.randperm(len(chosen), generator=generator(self.seed, "order", step))
        return [chosen[i] for i in order]

    def _served(self, steps: int) -> dict[str, int]:
        """Prompts each source has served after `steps`: cumulative shares rounded down at their running sum."""
        total = steps * self.groups
        served, running, placed = {}, 0.0, 0
        for name, share in self.shares.items():
            running += share
            bound = round(total * running)
            served[name], placed = bound - placed, bound
        return served

    def _prompt(self, source: str, place: int) -> Prompt:
        prompts = self.sources[source]
        epoch, index = divmod(place, len(prompts))
        order = torch.randperm(len(prompts), generator=generator(self.seed, "epoch", source, epoch))
        return prompts[int(order[index])]
