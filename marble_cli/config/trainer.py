"""The type and range of the keys of `trainer`."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from marble_cli.config.enums import OnHacking, Parallel
from marble_cli.config.ranges import ABOVE_1, BELOW_1, POSITIVE, SEED, SHARE, at_least, ranged
from marble_cli.config.select import SelectConfig


@dataclass
class EmaConfig:
    """Moving average of the trained weights."""

    decay: float = ranged(MISSING, BELOW_1)
    warmup: int = ranged(MISSING, at_least(0))
    offset: int = ranged(0, at_least(0))


@dataclass
class FsdpConfig:
    """Shards over processes, for `trainer.parallel=fsdp`."""

    replicas: int = ranged(1, at_least(1))
    reshard: bool = True


@dataclass
class RollbackConfig:
    """Returns to the best checkpoint, for `trainer.on_hacking=rollback`."""

    times: int = ranged(3, at_least(1))
    kl_factor: float = ranged(3.0, ABOVE_1)
    kl_least: float = ranged(1e-4, POSITIVE)


@dataclass
class TrainerConfig:
    """Length, batches, checkpoints and evaluations of a run."""

    steps: int = ranged(MISSING, at_least(0))
    seed: int = ranged(MISSING, SEED)
    micro_batch_size: int = ranged(MISSING, at_least(1))
    timestep_fraction: float = ranged(MISSING, SHARE)
    times_per_image: int | None = ranged(MISSING, at_least(1))
    select: SelectConfig = field(default_factory=SelectConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    checkpoint_every: int = ranged(MISSING, at_least(1))
    keep_last: int = ranged(MISSING, at_least(1))
    keep_every: int = ranged(0, at_least(0))
    best: str = "eval/composite"
    eval_every: int = ranged(MISSING, at_least(0))
    eval_prompts: int = ranged(MISSING, at_least(1))
    pending_batches: int = ranged(MISSING, at_least(1))
    encode_ahead: int = ranged(MISSING, at_least(1))
    max_skipped: int = ranged(MISSING, at_least(0))
    on_hacking: OnHacking = OnHacking.warn
    rollback: RollbackConfig = field(default_factory=RollbackConfig)
    parallel: Parallel = Parallel.ddp
    fsdp: FsdpConfig = field(default_factory=FsdpConfig)
