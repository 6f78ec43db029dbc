"""Start a run's LoRA from one that another run or program trained: `model.lora.init`."""

from dataclasses import dataclass

from torch import Tensor

from marble_cli.checkpoint import lora
from marble_cli.config.enums import Train
from marble_cli.config.schema import RunConfig
from marble_cli.errors import CheckpointError
from marble_cli.evaluate.target import Target, resolve_target
from marble_cli.policy.foreign import check_fit, fit_lora
from marble_cli.policy.pipeline import PipelinePolicy
from marble_cli.policy.provenance import check_model


@dataclass(frozen=True)
class Start:
    """The LoRA that a run starts from; `state` is as `Policy.trained_state`, of scale 1."""

    target: Target
    state: dict[str, Tensor]

    def put_into(self, policy: PipelinePolicy, seed: int) -> None:
        """Load the LoRA into the trained and the behaviour policy, which then draw as it does.

        Its rank may be below `model.lora.rank`, and its alpha any: what it adds to a layer is kept. The base
        model stays the reference of the KL term.

        Raises:
            CheckpointError: the LoRA is of another model, or does not fit the rank or the target modules.
        """
        name = f"model.lora.init={self.target.label}"
        check_model(self.target.provenance, policy.provenance(), name)
        shapes = {name: value.shape for name, value in policy.parameters("trained").items()}
        policy.load_trained(fit_lora(self.state, policy.model, shapes, name, seed))


def read_start(config: RunConfig) -> Start | None:
    """Read the LoRA that a run starts from, None if it starts from a new one.

    Raises:
        CheckpointError: there is none at `model.lora.init`, it is damaged, or it has layers or a rank that
            the run has not.
    """
    spec = config.model.lora.init
    if spec is None:
        return None
    model, target = config.model, resolve_target(spec).fitted(config.model)
    provenance = target.provenance
    if model.train is not Train.lora or target.weights is None or provenance["train"] != "lora":
        raise CheckpointError(f"model.lora.init={spec}: expected a LoRA, and model.train=lora.")
    check_fit(target.weights, model.lora, f"model.lora.init={target.label}")
    if target.elsewhere is not None:
        return Start(target, target.weights)
    if "alpha" not in provenance:
        raise CheckpointError(
            f"model.lora.init={spec}: its checkpoint does not state the alpha of its LoRA. Expected one that "
            "this version wrote: resume its run for a step."
        )
    return Start(target, lora.folded(target.weights, provenance["alpha"] / provenance["rank"]))
