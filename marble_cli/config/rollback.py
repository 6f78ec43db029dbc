"""The type and range of the keys of `trainer.rollback`."""

from dataclasses import dataclass

from marble_cli.config.ranges import ABOVE_1, POSITIVE, at_least, ranged


@dataclass
class RollbackConfig:
    """Returns to the best checkpoint, for `trainer.on_hacking=rollback`."""

    times: int = ranged(3, at_least(1))
    kl_factor: float = ranged(3.0, ABOVE_1)
    kl_least: float = ranged(1e-4, POSITIVE)
