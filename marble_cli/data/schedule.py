"""Which prompts a step trains on: a pure function of seed and step, so that ranks and restarts agree."""

from collections.abc import Mapping

import torch

from marble_cli.data.prompts import Prompt
from marble_cli.seeds import generator


class PromptSampler:
    """Draws `groups` prompts a step from several sources, in shares of their `weights`.

    After any number of steps each source has served its share to less than one prompt. Within a source every
    prompt is used once before any is used again.

    Source: Tijdeman, The chairman assignment problem, Discrete Mathematics 32 (1980).
    """

    def __init__(
        self, sources: Mapping[str, list[Prompt]], weights: Mapping[str, float], groups: int, seed: int
    ) -> None:
        self.sources, self.groups, self.seed = sources, groups, seed
        total = sum(weights[name] for name in sources)
        self.shares = {name: weights[name] / total for name in sources if weights[name] > 0}
        self._orders = dict[str, tuple[int, torch.Tensor]]()  # each source's last epoch and its order
        self._history = [dict.fromkeys(self.shares, 0)]  # prompts served by source, after each step

    def step(self, step: int) -> list[Prompt]:
        """The prompts of the 1-based `step`, one a group, in a seeded order."""
        before, after = self._served(step - 1), self._served(step)
        chosen = [
            self._prompt(name, place) for name in self.shares for place in range(before[name], after[name])
        ]
        order = torch.randperm(len(chosen), generator=generator(self.seed, "order", step))
        return [chosen[i] for i in order]

    def _served(self, steps: int) -> dict[str, int]:
        """Prompts that each source has served after `steps`; what was counted before is kept."""
        slack = 1.0 / max(1, 2 * len(self.shares) - 2)
        while len(self._history) <= steps:
            served = dict(self._history[-1])
            for place in range(
                (len(self._history) - 1) * self.groups + 1, len(self._history) * self.groups + 1
            ):
                # Of the sources that may serve now without running ahead, the one whose deadline is nearest.
                behind = {name: share * place - served[name] for name, share in self.shares.items()}
                ready = [name for name in behind if behind[name] >= slack - 1e-9]
                served[min(ready, key=lambda name: (1.0 - slack - behind[name]) / self.shares[name])] += 1
            self._history.append(served)
        return self._history[steps]

    def _prompt(self, source: str, place: int) -> Prompt:
        prompts = self.sources[source]
        epoch, index = divmod(place, len(prompts))
        known, order = self._orders.get(source, (None, None))
        if order is None or known != epoch:
            order = torch.randperm(len(prompts), generator=generator(self.seed, "epoch", source, epoch))
            self._orders[source] = epoch, order
        return prompts[int(order[index])]
