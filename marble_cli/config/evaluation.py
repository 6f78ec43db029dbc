"""Fill in what evaluations inherit, the same for a run, for `marble eval` and for a checkpoint's record."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import attrgetter, getitem
from typing import Any

from marble_cli.config.enums import OdeSolver, RolloutTimes
from marble_cli.config.schema import RunConfig

# The key whose value a null of the group `evaluation` takes.
INHERITS = {
    "steps": "rollout.steps",
    "solver": "rollout.solver",
    "times": "rollout.times",
    "guidance_scale": "rollout.guidance_scale",
    "resolution": "model.resolution",
    "batch_size": "rollout.batch_size",
    "prompts": "trainer.eval_prompts",
    "seed": "trainer.seed",
}


@dataclass(frozen=True)
class EvaluationSettings:
    """The group `evaluation` of a run, with the inherited value for each null."""

    steps: int
    solver: OdeSolver
    times: RolloutTimes
    guidance_scale: float
    resolution: int | str
    batch_size: int
    images_per_prompt: int
    prompts: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Return the settings that decide which pictures are drawn, as JSON holds them."""
        own = {**vars(self), "solver": self.solver.value, "times": self.times.value}
        del own["batch_size"]
        return own


def resolve_evaluation(config: RunConfig) -> EvaluationSettings:
    """Return how a run's images are evaluated."""
    own = vars(config.evaluation)
    inherited = {key: attrgetter(path)(config) for key, path in INHERITS.items() if own[key] is None}
    return EvaluationSettings(**{**own, **inherited})


def pictured(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the settings that decide which pictures are evaluated, to compare one run's with another's.

    Args:
        tree: the plain tree of a run's configuration.
    """
    own = dict(tree["evaluation"])
    del own["batch_size"]
    return {
        key: reduce(getitem, INHERITS[key].split("."), tree) if value is None else value
        for key, value in own.items()
    }
