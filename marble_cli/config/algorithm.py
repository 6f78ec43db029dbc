"""The type and range of the keys of `algorithm`."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from marble_cli.config.enums import (
    AdvantageStd,
    BehaviourSchedule,
    DecaySchedule,
    KlGate,
    KlReference,
    TrainingNoise,
    TrainingTimes,
)
from marble_cli.config.ranges import ABOVE_1, POSITIVE, SHARE, at_least, ranged


@dataclass
class AdvantageConfig:
    """Normalisation of rewards into advantages."""

    std: AdvantageStd = MISSING
    clip: float = ranged(MISSING, POSITIVE)


@dataclass
class BehaviourConfig:
    """Schedule of the behaviour policy, which draws the images of a step."""

    schedule: BehaviourSchedule = MISSING
    rate: float = ranged(MISSING, at_least(0))
    maximum: float = ranged(MISSING, SHARE)
    delay: int = ranged(0, at_least(0))


@dataclass
class AlgorithmConfig:
    """The DiffusionNFT loss and the draws that it takes."""

    beta: float = ranged(MISSING, POSITIVE)
    kl_coef: float = ranged(MISSING, at_least(0))
    kl_schedule: DecaySchedule = DecaySchedule.constant
    kl_every: int = ranged(1, at_least(1))
    kl_reference: KlReference = KlReference.base
    kl_guidance: float | None = ranged(None, ABOVE_1)
    kl_gate: KlGate = KlGate.none
    training_noise: TrainingNoise = MISSING
    training_times: TrainingTimes = TrainingTimes.leading
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    behaviour: BehaviourConfig = field(default_factory=BehaviourConfig)


def guidance_of_reference(algorithm: AlgorithmConfig, rollout_scale: float) -> float:
    """Return the guidance scale of `algorithm.kl_reference=guided`, given `rollout.guidance_scale`."""
    return rollout_scale if algorithm.kl_guidance is None else algorithm.kl_guidance
