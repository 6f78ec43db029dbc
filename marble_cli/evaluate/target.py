"""Resolve a target of `marble eval` and `generate`, and hold its weights in a policy.

A target is a checkpoint, a run, the base model, or a LoRA or whole transformer that another program wrote.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from marble_cli.checkpoint import store
from marble_cli.checkpoint.elsewhere import find_weights, read_weights
from marble_cli.config.compose import compose
from marble_cli.config.enums import Train
from marble_cli.config.schema import ModelConfig, RunConfig
from marble_cli.errors import CheckpointError
from marble_cli.paths import expand, labels
from marble_cli.policy.base import Adapter
from marble_cli.policy.diffusers_types import Network
from marble_cli.policy.foreign import convert_lora, fit_lora, lora_settings
from marble_cli.policy.load import load_policy
from marble_cli.policy.pipeline import PipelinePolicy
from marble_cli.policy.provenance import check_provenance, read_provenance

LORA_SETTINGS = ("rank", "alpha", "target_modules")


@dataclass(frozen=True)
class Target:
    """A named policy with its weights (the moving average), which are None for the base model.

    `elsewhere` is the file of a LoRA or the folder of a transformer that no run wrote. `fitted` reads its
    weights, because that takes the model, and sets `model`, the settings of a policy that holds them.
    """

    label: str
    weights: dict[str, Tensor] | None
    checkpoint: Path | None
    provenance: Mapping[str, Any] = field(default_factory=dict)  # as in `Policy`
    elsewhere: Path | None = None
    model: ModelConfig | None = None

    @property
    def adapter(self) -> Adapter:
        """The weights that draw, once the target is put into a policy."""
        return None if self.weights is None else "trained"

    @property
    def config(self) -> Path | None:
        """Path of the configuration of the checkpoint's run, None if there is no such file."""
        if self.checkpoint is None:
            return None
        path = self.checkpoint.parent.parent / "config.yaml"
        return path if path.is_file() else None

    def fitted(self, model: ModelConfig) -> "Target":
        """Return the target with its weights, and with `model` whose `train` and `lora` hold them.

        Raises:
            CheckpointError: the weights are damaged, or do not fit the model.
        """
        if self.elsewhere is not None:
            return self._read(self.elsewhere, model)
        if self.weights is None:
            return replace(self, model=model)
        model = replace(model, train=Train(self.provenance["train"]))
        lora = {key: self.provenance[key] for key in LORA_SETTINGS if key in self.provenance}
        if lora.get("target_modules") == sorted(model.lora.target_modules):
            del lora["target_modules"]  # the same ones in another order
        return replace(self, model=replace(model, lora=replace(model.lora, **lora)))

    def _read(self, path: Path, model: ModelConfig) -> "Target":
        given = read_weights(path)
        provenance = {"train": given.train, "transformer": given.config}
        found = replace(self, weights=given.tensors, provenance=provenance)
        if given.train == "full":
            return replace(found, model=replace(model, train=Train.full))
        state = convert_lora(given.tensors, given.header, given.config, model, self.label)
        model = replace(model, train=Train.lora, lora=lora_settings(state))
        return replace(found, weights=state, model=model)

    def put_into(self, policy: PipelinePolicy) -> None:
        """Load the target's weights into `policy`.

        Raises:
            CheckpointError: the weights belong to another model, other LoRA settings or another
                `model.train`.
        """
        if self.weights is None:
            return
        check_provenance(self.provenance, policy.provenance(), self.label)
        weights = self.weights
        if self.elsewhere is not None and self.provenance["train"] == "lora":
            shapes = {name: value.shape for name, value in policy.parameters("trained").items()}
            weights = fit_lora(weights, policy.model, shapes, self.label, seed=0)
        elif self.elsewhere is not None:
            _check_settings(self.provenance["transformer"], policy.network, self.label)
        policy.load_trained(weights)


def _check_settings(config: Mapping[str, Any], network: Network, label: str) -> None:
    """Check that a transformer's config.json sets what the model's own does, which no shape may show."""
    for key, parameter in inspect.signature(type(network).__init__).parameters.items():
        if parameter.default is parameter.empty or key not in network.config:
            continue
        if key == "sample_size" and not network.config.get("interpolation_scale"):
            continue  # the size that pictures have by default
        given = config.get(key, parameter.default), network.config[key]
        theirs, ours = json.loads(json.dumps(given))  # without tuples
        if (theirs or None) != (ours or None):
            raise CheckpointError(
                f"{label} does not fit: its config.json has {key}={theirs}, and the model's has {ours}. "
                "Expected a transformer or unet with the settings of the model's own."
            )


def resolve_target(spec: str) -> Target:
    """Load what `spec` names.

    That is `base`, a checkpoint folder, a run folder (its latest checkpoint), or the LoRA or transformer that
    another program wrote: its file or folder, or a hub id.

    Raises:
        CheckpointError: the checkpoint is damaged, or `spec` names nothing.
    """
    if spec == "base":
        return Target("base", None, None)
    path = expand("", spec)
    if not store.is_checkpoint(path) and (found := find_weights(spec, path)) is not None:
        return Target(spec, None, None, elsewhere=found)
    path = store.resolve(spec)
    state, ema = store.load_average(path)
    return Target(
        f"{path.parent.parent.name}/{path.name}", ema, path, read_provenance(state.info, state.train)
    )


def tell_apart(targets: Sequence[Target]) -> list[Target]:
    """Name the runs of targets by as many folders as tell them apart: `a/demo/step-00000010`."""
    runs = {target.checkpoint: target.checkpoint.parent.parent for target in targets if target.checkpoint}
    names = dict(zip(runs, labels(list(runs.values())), strict=True))
    return [
        replace(target, label=f"{names[target.checkpoint]}/{target.checkpoint.name}")
        if target.checkpoint
        else target
        for target in targets
    ]


def run_config(overrides: Sequence[str], *targets: Target) -> RunConfig:
    """Compose the configuration for drawing and scoring: a run's, with `overrides` as in `marble train`.

    The run is that of the first of `targets` that has one. If none has, the package's configuration is used.

    Raises:
        ConfigError: an override is wrong.
    """
    path = _first_config(targets)
    return compose(overrides, str(path) if path else None)


def _first_config(targets: Sequence[Target]) -> Path | None:
    return next((target.config for target in targets if target.config is not None), None)


class Models:
    """Hold one policy at a time; load the model anew only for a target whose weights the policy cannot hold.

    Args:
        overrides: as in `marble train`.
        targets: what will be held; the first with a run decides the configuration.

    Attributes:
        config: the configuration of that run, with the overrides.
        targets: the targets with their weights, in the given order.

    Raises:
        ConfigError: an override is wrong.
        CheckpointError: the weights of a target are damaged, or do not fit the model.
    """

    def __init__(self, overrides: Sequence[str], targets: Sequence[Target]) -> None:
        targets = tell_apart(targets)
        self.config = run_config(overrides, *targets)
        source, model = _first_config(targets), self.config.model
        # An override of the LoRA's settings is an error for a checkpoint of that run; `put_into` raises it.
        self.targets = [
            replace(target, model=model) if source and target.config == source else target.fitted(model)
            for target in targets
        ]
        self.policy: PipelinePolicy | None = None

    def hold(self, target: Target) -> PipelinePolicy:
        """Return a policy with the weights of one of `targets`; policies that were returned before are void.

        Raises:
            CheckpointError: the weights do not fit the model, or an override of its run's LoRA settings.
            RequestError: the model cannot be loaded.
        """
        assert target.model is not None
        if self.policy is None or (target.adapter is not None and self.policy.model != target.model):
            self.policy = None  # two models may not fit into memory
            self.policy = load_policy(target.model, self.config.trainer.seed)
        target.put_into(self.policy)
        return self.policy
