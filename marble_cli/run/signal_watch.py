"""Watch the metrics of a run for training that continues without signal, and say so once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

# Steps in a row. In half precision, rounding hides how little two policies differ in the first steps.
DEAD, EQUAL, EQUAL_IN_HALF_PRECISION = 3, 1, 10


@dataclass
class SignalWatch:
    """Warn of trained velocities that equal the behaviour policy's, and of steps with little signal.

    The two policies are equal at the start, and after an update with eta = 0, which copies the trained
    weights into the behaviour policy. After any other update that moved the weights, they must differ. What
    came before a run was resumed is unknown, so its first step never counts.

    Attributes:
        patience: steps in a row with a deviation of exactly zero before a warning.
        together: whether both policies may be equal at the next step.
        in_a_row: steps in a row, by kind of warning.
        warned: kinds that were warned of.
    """

    patience: int
    together: bool = True
    in_a_row: dict[str, int] = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)

    @classmethod
    def over(cls, dtype: torch.dtype) -> "SignalWatch":
        """Watch a policy that computes in `dtype`."""
        return cls(EQUAL if dtype is torch.float32 else EQUAL_IN_HALF_PRECISION)

    def see(self, metrics: Mapping[str, float]) -> Iterator[str]:
        """Read the metrics of the next step, and yield warnings."""
        equal = metrics.get("policy/deviation") == 0 and not self.together
        if self._lasts("equal", equal, self.patience):
            yield (
                "policy/deviation is exactly 0: the trained policy computes the same velocities as the "
                "behaviour policy, though the weights were updated. Training has no effect, or images are "
                "drawn by the very weights in training. See whether grad_norm and optimizer/learning_rate "
                "are above 0, whether model.lora.target_modules names layers in use, and whether "
                "model.precision=fp32 shows a deviation"
            )
        if self._lasts("dead", metrics.get("signal/dead_groups", 0) > 0.5, DEAD):
            advice = "; rollout.dead_groups=redraw draws other prompts"
            yield (
                "most prompt groups are dead, which signal/dead_groups counts: no trained reward tells their "
                "images apart, or none applies, so they teach nothing. reward/<name>/flat_groups says more. "
                "Choose prompts that are neither too easy nor too hard, a larger rollout.group_size or finer "
                f"rewards{'' if 'signal/redrawn_groups' in metrics else advice}"
            )
        if "behaviour/eta" in metrics:
            self.together = metrics["behaviour/eta"] == 0 or metrics["grad_norm"] == 0

    def _lasts(self, kind: str, true: bool, steps: int) -> bool:
        """Tell, once per kind, that something was true at so many steps in a row."""
        self.in_a_row[kind] = self.in_a_row.get(kind, 0) + 1 if true else 0
        if self.in_a_row[kind] < steps or kind in self.warned:
            return False
        self.warned.add(kind)
        return True
