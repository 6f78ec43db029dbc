"""Resolve the target of `marble eval`, `generate` and `export`: a checkpoint, a run, or the base model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from marble_cli.checkpoint import store
from marble_cli.config.compose import compose
from marble_cli.config.schema import RunConfig
from marble_cli.policy.base import Policy
from marble_cli.policy.provenance import check_provenance, read_provenance


@dataclass(frozen=True)
class Target:
    """A named policy with its weights (the moving average), which are None for the base model."""

    label: str
    weights: dict[str, Tensor] | None
    checkpoint: Path | None
    provenance: Mapping[str, Any] = field(default_factory=dict)  # as in `Policy`

    def put_into(self, policy: Policy) -> None:
        """Load the target's weights into `policy`.

        Raises:
            CheckpointError: the weights belong to another model, other LoRA settings or another
                `model.train`.
        """
        if self.weights is not None:
            check_provenance(self.provenance, policy.provenance(), self.label)
            policy.load_trained(self.weights)

    @property
    def config(self) -> Path | None:
        """Path of the configuration of the checkpoint's run, None if there is no such file."""
        if self.checkpoint is None:
            return None
        path = self.checkpoint.parent.parent / "config.yaml"
        return path if path.is_file() else None


def resolve_target(spec: str) -> Target:
    """Load what `spec` names: `base`, a checkpoint folder, or a run folder (its latest checkpoint).

    Raises:
        CheckpointError: the checkpoint is damaged.
        RequestError: `spec` names nothing.
    """
    if spec == "base":
        return Target("base", None, None)
    path = store.resolve(spec)
    state, _, ema = store.load(path)
    return Target(
        f"{path.parent.parent.name}/{path.name}", ema, path, read_provenance(state.info, state.train)
    )


def run_config(overrides: Sequence[str], *targets: Target | None) -> RunConfig:
    """Compose the configuration for drawing and scoring: a run's, with `overrides` as in `marble train`.

    The run is that of the first of `targets` that has one. If none has, the package's configuration is used.

    Raises:
        ConfigError: an override is wrong.
    """
    path = next((target.config for target in targets if target is not None and target.config), None)
    return compose(overrides, str(path) if path else None)
