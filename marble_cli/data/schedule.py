"""Choose the prompts of each step from seed and step alone, so that ranks and resumed runs agree."""

from collections.abc import Collection, Mapping, Sequence

import torch

from marble_cli.data.prompts import Prompt
from marble_cli.seeds import generator


class PromptSampler:
    """Draw `groups` prompts per step from several sources, in proportion to `weights`.

    After any number of steps, the number of prompts drawn from a source differs from its share by less than
    one. Within a source, every prompt is used once before any is used again.

    Source: Tijdeman, The chairman assignment problem, Discrete Mathematics 32 (1980).
    """

    def __init__(
        self, sources: Mapping[str, list[Prompt]], weights: Mapping[str, float], groups: int, seed: int
    ) -> None:
        self.sources, self.groups, self.seed = sources, groups, seed
        total = sum(weights[name] for name in sources)
        self.shares = {name: weights[name] / total for name in sources if weights[name] > 0}
        self._orders = dict[str, tuple[int, torch.Tensor]]()  # by source: the current epoch and its order
        self._history = [dict.fromkeys(self.shares, 0)]  # prompts drawn by source, after each step

    def step(self, step: int) -> list[Prompt]:
        """Return the prompts of the 1-based `step`, one per group, in a seeded order."""
        before, after = self._count_drawn(step - 1), self._count_drawn(step)
        chosen = [
            self._pick(name, place) for name in self.shares for place in range(before[name], after[name])
        ]
        order = torch.randperm(len(chosen), generator=generator(self.seed, "order", step))
        return [chosen[i] for i in order]

    def others(
        self, step: int, attempt: int, prompts: Sequence[Prompt], used: Collection[tuple[str, str]]
    ) -> list[Prompt | None]:
        """Return another prompt of the same source for each of `prompts`, so that sources keep their shares.

        Args:
            step: 1-based; with `attempt` it decides the draw.
            attempt: 1-based, among those of the step.
            prompts: to replace.
            used: keys of the step's prompts so far, which are not drawn again.

        Returns:
            As many prompts, None where the source has no other one.
        """
        fresh = {}
        for source in {prompt.source for prompt in prompts}:
            rows, draw = self.sources[source], generator(self.seed, "others", step, attempt, source)
            order = torch.randperm(len(rows), generator=draw).tolist()
            distinct = {rows[i].key: rows[i] for i in order if rows[i].key not in used}
            fresh[source] = iter(distinct.values())
        return [next(fresh[prompt.source], None) for prompt in prompts]

    def _count_drawn(self, steps: int) -> dict[str, int]:
        """Count the prompts drawn from each source after `steps`, and keep the counts of all steps so far."""
        slack = 1.0 / max(1, 2 * len(self.shares) - 2)
        while len(self._history) <= steps:
            drawn = dict(self._history[-1])
            first = (len(self._history) - 1) * self.groups + 1
            for place in range(first, first + self.groups):
                # Of the sources that are not ahead of their share, draw from the one whose deadline is
                # nearest.
                behind = {name: share * place - drawn[name] for name, share in self.shares.items()}
                ready = [name for name in behind if behind[name] >= slack - 1e-9]
                drawn[min(ready, key=lambda name: (1.0 - slack - behind[name]) / self.shares[name])] += 1
            self._history.append(drawn)
        return self._history[steps]

    def _pick(self, source: str, place: int) -> Prompt:
        prompts = self.sources[source]
        epoch, index = divmod(place, len(prompts))
        kept_epoch, order = self._orders.get(source, (None, None))
        if order is None or kept_epoch != epoch:
            order = torch.randperm(len(prompts), generator=generator(self.seed, "epoch", source, epoch))
            self._orders[source] = epoch, order
        return prompts[int(order[index])]
