"""Write the merged LoRA of several runs as a run of its own, at step 0."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from marble_cli.balance.cache import DirectionCache
from marble_cli.checkpoint import lora, store
from marble_cli.checkpoint.merge import MergeMethod, merge_loras
from marble_cli.checkpoint.store import TrainerState
from marble_cli.config.compose import dump, load_resolved
from marble_cli.config.schema import RunConfig
from marble_cli.config.validate import validate
from marble_cli.errors import RequestError
from marble_cli.evaluate.target import Target, resolve_target
from marble_cli.files import check_writable, write_whole, writing
from marble_cli.policy.provenance import check_provenance

FREE = ("rank", "alpha")  # settings of a LoRA in which merged ones may differ


def merge(
    targets: Sequence[str], output: Path, weights: Sequence[float] | None, method: MergeMethod, density: float
) -> Path:
    """Merge the moving averages of `targets` into a new run folder; return its checkpoint.

    Evaluate, export or resume the result like any run's. Its configuration is that of the first target's run,
    with the rewards of all of them and the merged LoRA's rank.

    Args:
        targets: runs or checkpoints, two or more, of LoRAs of one model.
        output: a folder that does not exist yet, or an empty one.
        weights: one number per target; equal shares that add up to 1 if None.
        method: see `checkpoint.merge`.
        density: see `checkpoint.merge.merge_loras`.

    Raises:
        RequestError: the targets cannot be merged, or `output` cannot be written.
        ConfigError: the rewards of one run do not fit the prompts of the first.
        CheckpointError: a target is damaged or there is none.
        StorageError: there is no room.
    """
    if len(targets) < 2:
        raise RequestError(
            f"merge {' '.join(targets)}: expected two or more runs or checkpoints, then the output."
        )
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise RequestError(f"{output} exists and is not overwritten. Choose another folder.")
    check_writable(output, "")
    loras = {spec: _read_lora(spec) for spec in targets}
    if len({target.checkpoint for target in loras.values()}) < len(targets):
        raise RequestError(
            f"merge {' '.join(targets)}: a target is named twice. Expected each once, with --weights."
        )
    first = loras[targets[0]]
    for spec, target in loras.items():
        but_free = {**target.provenance, **{key: first.provenance[key] for key in FREE}}
        check_provenance(but_free, first.provenance, spec)
    config = _merge_configs(targets[0], list(loras.values()))
    states = {spec: _fold(target) for spec, target in loras.items()}
    if weights is None:
        weights = [1 / len(states)] * len(states)
    merged = merge_loras(states, weights, method, density)
    labels = [target.label for target in loras.values()]
    made = {"method": method.value, "loras": labels, "weights": list(weights)}
    return _write(output, config, first, merged, made)


def _read_lora(spec: str) -> Target:
    target = resolve_target(spec)
    if target.weights is None or target.checkpoint is None or target.provenance.get("train") != "lora":
        raise RequestError(f"merge {spec}: no LoRA. Expected a run or checkpoint with model.train=lora.")
    if missing := [key for key in FREE if key not in target.provenance]:
        raise RequestError(
            f"merge {spec}: its checkpoint does not state the {missing[0]} of its LoRA. Expected one that "
            "this version wrote: resume the run for a step."
        )
    return replace(target, checkpoint=target.checkpoint.resolve())


def _fold(target: Target) -> dict[str, Tensor]:
    assert target.weights is not None
    return lora.folded(target.weights, target.provenance["alpha"] / target.provenance["rank"])


def _merge_configs(spec: str, targets: Sequence[Target]) -> RunConfig:
    """Return the first target's configuration with the rewards of all."""
    if targets[0].config is None:
        raise RequestError(f"merge {spec}: expected config.yaml in its run's folder, for the merged run.")
    config, *others = [load_resolved(target.config) for target in targets if target.config is not None]
    for other in others:
        config.rewards = {**other.rewards, **config.rewards}
    config.eval_rewards = {k: v for k, v in config.eval_rewards.items() if k not in config.rewards}
    validate(config)
    return config


def _write(
    output: Path, config: RunConfig, first: Target, merged: dict[str, Tensor], made: dict[str, Any]
) -> Path:
    rank = lora.settings(merged)["r"]
    config.model.lora.rank = config.model.lora.alpha = rank
    config.model.lora.init = None  # the merged LoRA is the start of what follows
    config.run.dir, config.run.name = str(output.absolute()), output.name
    info = {
        "cache": DirectionCache().state_dict(),
        "base_scores": {},
        "best": None,
        "best_step": None,
        "evaluated": -1,
        "wandb_id": None,
        "origin": {**first.provenance, "rank": rank, "alpha": rank},
        "merged": made,
    }
    behaviour = {lora.layer_key(key): value for key, value in merged.items()}
    state = TrainerState(0, {"behaviour": behaviour, "optimizer": {}}, info)
    with writing(output, "Choose another folder."):
        output.mkdir(parents=True, exist_ok=True)
    checkpoint = store.save(output, state, merged, merged, keep_last=1, best=False)
    write_whole(output / "config.yaml", dump(config))
    return checkpoint
