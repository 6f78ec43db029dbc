"""Draw and score the missing images of a benchmark, unit by unit, shared by all ranks.

A unit is what one rank draws at once: neighbouring prompts that fill a batch. Its images are the same
whichever rank draws them, and whatever else was drawn before: so are the scores.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from marble_cli.benchmark.record import Record, Rows
from marble_cli.config.benchmark import ProtocolConfig
from marble_cli.distributed.ranks import Ranks
from marble_cli.errors import RewardError
from marble_cli.evaluate.score import Evaluator
from marble_cli.policy.base import Adapter
from marble_cli.rollout.samples import Samples


def prompts_per_unit(protocol: ProtocolConfig) -> int:
    """Return the number of prompts whose images fill a batch; at least one."""
    return max(1, protocol.batch_size // protocol.images_per_prompt)


def units(prompts: int, protocol: ProtocolConfig) -> list[int]:
    """Return the place of each unit's first prompt."""
    return list(range(0, prompts, prompts_per_unit(protocol)))


@dataclass(frozen=True)
class Draw:
    """The drawing of one target's images of one benchmark.

    Attributes:
        evaluator: of all prompts; it draws for this rank alone.
        adapter: the weights that draw.
        protocol: the benchmark's.
        names: by reward of the protocol, its name in the evaluator's scorer.
        ranks: share the units.
        record: takes the scores; that of the main rank is written.
    """

    evaluator: Evaluator
    adapter: Adapter
    protocol: ProtocolConfig
    names: dict[str, str]
    ranks: Ranks
    record: Record

    def run(self, missing: Sequence[int], weights: str, advance: Callable[[int], None]) -> None:
        """Draw the units that begin at the `missing` places. While one is drawn, the last one is scored.

        Args:
            missing: places of units.
            weights: digest of the base model.
            advance: called with the number of images that have scores.

        Raises:
            RewardError: a reward broke its contract, or failed on too many images.
        """
        self.record.forget(missing)  # failures of an earlier command do not count against this one
        own = list(missing[self.ranks.rank :: self.ranks.world])
        self.evaluator.rollout.prepare([self.evaluator.prompts[i] for place in own for i in self._of(place)])
        with ExitStack() as stack:
            with self.ranks.raise_together():
                file = self.record.open(weights) if self.ranks.is_main else None
            if file is not None:
                stack.callback(file.close)
            for every in self._score(own, turns=-(-len(missing) // self.ranks.world) + 1):
                with self.ranks.raise_together():
                    if file is not None:
                        for rows in every:
                            self.record.add(file, rows)
                            advance(len(self._of(rows.first)) * self.protocol.images_per_prompt)
                        self._check_failures()

    def _score(self, own: Sequence[int], turns: int) -> Iterator[list[Rows]]:
        """Draw this rank's `own` units; yield what all ranks have scored, turn by turn."""
        drawn: tuple[int, Samples] | None = None
        since = time.monotonic()
        for turn in range(turns):
            rows, now = None, None
            with self.ranks.raise_together():
                if turn < len(own):
                    now = own[turn], self.evaluator.draw(list(self._of(own[turn])), self.adapter)
                if drawn is not None:
                    rows = vars(self._rows(*drawn, time.monotonic() - since))
                    since = time.monotonic()
            drawn = now
            yield [Rows(**part) for part in self.ranks.all_gather_json(rows) if part is not None]

    def _of(self, place: int) -> range:
        """Return the places of the prompts of a unit."""
        return range(place, min(place + prompts_per_unit(self.protocol), len(self.evaluator.prompts)))

    def _rows(self, place: int, samples: Samples, seconds: float) -> Rows:
        every, size = samples.scores(Ranks.alone()), self.protocol.images_per_prompt
        scores, failed = {}, {}
        for reward, name in self.names.items():
            k = every.names.index(name)
            pairs = zip(every.values[k].tolist(), every.applicable[k].tolist(), strict=True)
            values = [value if applies else None for value, applies in pairs]
            scores[reward] = [values[start : start + size] for start in range(0, len(values), size)]
            failed[reward] = int(every.failed[k].sum())
        return Rows(place, scores, failed, seconds)

    def _check_failures(self) -> None:
        """Stop as soon as a reward has failed on more images than it may fail on in all."""
        images = len(self.evaluator.prompts) * self.protocol.images_per_prompt
        for worker in self.evaluator.scorer.workers:
            reward = next(key for key, name in self.names.items() if name == worker.name)
            failed, limit = self.record.failed(reward), worker.settings.max_failed
            if failed > limit * images:
                raise RewardError(
                    f"reward {reward} failed on {failed} of {images} images, more than "
                    f"{worker.key}.max_failed={limit:g} allows. Last error: "
                    f"{worker.error or 'on another rank'}. The same command tries these images again."
                )
