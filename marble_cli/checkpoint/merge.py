"""Combine several LoRAs into one, without training.

Each LoRA adds `B_i @ A_i` to a layer's weight. With weights w_i, the merged one should add
`sum_i w_i B_i @ A_i`.

- `concat` stacks the factors along the rank. The sum is exact, and the rank is the sum of the ranks.
- `average` adds up the factors: `(sum_i sqrt(w_i) B_i) @ (sum_i sqrt(w_i) A_i)`, with the sign of w_i in A_i.
  That is the weighted sum and the products of factors of different LoRAs. It keeps the rank.
- `ties` (arXiv 2306.01708) and `dare` (arXiv 2311.03099) thin the factors out first, by agreement in sign and
  at random, and then add them up; `ties` takes the mean over the LoRAs that keep a value.

peft's `add_weighted_adapter` does the arithmetic. Merging models that were trained on one reward each is
known as rewarded soups (arXiv 2306.04488).
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from enum import Enum

import peft
import torch
from torch import Tensor, nn

from marble_cli.checkpoint.lora import A, B, layers, prefix
from marble_cli.errors import RequestError

SEED = 0  # of `dare`, which drops values at random
DENSITY = 0.5


class MergeMethod(Enum):
    """How the factors of several LoRAs become those of one."""

    concat = "concat"
    average = "average"
    ties = "ties"
    dare = "dare"


COMBINATIONS = {
    MergeMethod.concat: "cat",
    MergeMethod.average: "linear",
    MergeMethod.ties: "ties",
    MergeMethod.dare: "dare_linear",
}


def merge_loras(
    loras: Mapping[str, Mapping[str, Tensor]],
    weights: Sequence[float],
    method: MergeMethod = MergeMethod.concat,
    density: float = DENSITY,
) -> dict[str, Tensor]:
    """Return one LoRA of scale 1 from several.

    Args:
        loras: folded LoRAs by name: A [rank, in] and B [out, rank] of every layer (`checkpoint.lora`).
        weights: one number per LoRA.
        method: how the factors are combined.
        density: share of values that `ties` and `dare` keep, above 0 and below 1.

    Raises:
        RequestError: a weight is missing, 0, not finite or so large that the merged LoRA is not; the LoRAs
            adapt different layers; or their ranks differ and the method needs equal ones.
    """
    _check(loras, weights, method, density)
    states = list(loras.values())
    host = _host(states)
    names = [f"lora_{place}" for place in range(len(states))]
    for name, state, weight in zip(names, states, weights, strict=True):
        _put(host, name, state, math.copysign(1.0, weight))
    kept = {} if method in (MergeMethod.concat, MergeMethod.average) else {"density": density}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        host.add_weighted_adapter(
            names,
            [abs(weight) for weight in weights],
            "merged",
            combination_type=COMBINATIONS[method],
            **kept,
        )
    merged = _taken(host, "merged", prefix(states[0]))
    if not all(value.isfinite().all() for value in merged.values()):
        raise RequestError(
            f"--weights {_listed(weights)}: the merged LoRA is not finite. Expected smaller ones."
        )
    return merged


def _check(
    loras: Mapping[str, Mapping[str, Tensor]], weights: Sequence[float], method: MergeMethod, density: float
) -> None:
    if len(weights) != len(loras) or not all(math.isfinite(weight) and weight for weight in weights):
        raise RequestError(
            f"--weights {_listed(weights)}: expected one finite number other than 0 per LoRA, "
            f"{len(loras)} in all."
        )
    if density != DENSITY and method in (MergeMethod.concat, MergeMethod.average):
        raise RequestError(
            f"--density {density:g}: {method.value} keeps all. Expected --method ties or dare."
        )
    if not 0 < density < 1:
        raise RequestError(f"--density {density:g}: expected a share above 0 and below 1.")
    first, *others = loras
    for name in others:
        if wrong := sorted(set(layers(loras[first])) ^ set(layers(loras[name]))):
            raise RequestError(
                f"{name} and {first} adapt different layers: {wrong[0]} is in one of them only. Expected "
                "LoRAs with the same model.lora.target_modules."
            )
    ranks = {name: _rank(state) for name, state in loras.items()}
    if method is not MergeMethod.concat and len(set(ranks.values())) > 1:
        said = ", ".join(f"{name} has {rank}" for name, rank in ranks.items())
        raise RequestError(
            f"--method {method.value}: ranks differ ({said}). Expected equal ranks, or --method concat."
        )


def _listed(weights: Sequence[float]) -> str:
    return ",".join(f"{weight:g}" for weight in weights)


def _rank(state: Mapping[str, Tensor]) -> int:
    return next(value.shape[0] for key, value in state.items() if key.endswith(A))


def _host(states: Sequence[Mapping[str, Tensor]]) -> peft.LoraModel:
    """Return a model that has the LoRAs' layers and nothing else; its own weights share one zero."""
    root = nn.Module()
    for layer in layers(states[0]):
        down, up = (states[0][f"{prefix(states[0])}{layer}{part}"] for part in (A, B))
        *parents, last = layer.split(".")
        module = root
        for name in parents:
            if name not in module._modules:
                module.add_module(name, nn.Module())
            module = module.get_submodule(name)
        linear = nn.Linear(down.shape[1], up.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(
            torch.zeros(1, 1).expand(up.shape[0], down.shape[1]), requires_grad=False
        )
        module.add_module(last, linear)
    host: peft.LoraModel | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft doubts that several adapters in one model are meant
        for place, state in enumerate(states):
            config = peft.LoraConfig(r=_rank(state), lora_alpha=_rank(state), target_modules=layers(state))
            if host is None:
                host = peft.LoraModel(root, config, f"lora_{place}", low_cpu_mem_usage=True)
            else:
                host.peft_config[f"lora_{place}"] = config
                host.inject_adapter(host.model, f"lora_{place}", low_cpu_mem_usage=True)
    assert host is not None
    return host


@torch.no_grad()
def _put(host: peft.LoraModel, name: str, state: Mapping[str, Tensor], sign: float) -> None:
    """Put a LoRA into `host`, times `sign`: peft below 0.18 takes the root of its weight."""
    for layer in layers(state):
        module, start = host.model.get_submodule(layer), prefix(state)
        module.lora_A[name].weight = nn.Parameter(
            sign * state[f"{start}{layer}{A}"].float(), requires_grad=False
        )
        module.lora_B[name].weight = nn.Parameter(state[f"{start}{layer}{B}"].float(), requires_grad=False)


def _taken(host: peft.LoraModel, name: str, start: str) -> dict[str, Tensor]:
    """Return an adapter's folded factors, as `checkpoint.lora` names them."""
    merged = {}
    for layer, module in host.model.named_modules():
        if hasattr(module, "lora_A") and name in module.lora_A:
            scale = module.scaling[name]
            merged[f"{start}{layer}{A}"] = module.lora_A[name].weight.detach().contiguous()
            merged[f"{start}{layer}{B}"] = (module.lora_B[name].weight.detach() * scale).contiguous()
    return merged
