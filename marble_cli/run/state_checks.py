"""Check the state in a checkpoint before a run uses it: types, ranges, names and shapes."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from marble_cli.checkpoint.manifest import REMEDY
from marble_cli.checkpoint.store import TrainerState
from marble_cli.errors import CheckpointError
from marble_cli.policy.trainable.fit import describe_misfits, find_misfits
from marble_cli.run.moments import SIGNED, expected_moments

# Keys that older checkpoints lack, with the values that those releases used.
ADDED_LATER = {
    "best_step": None,
    "best_metric": "eval/composite",
    "rollbacks": 0,
    "kl_coef": None,
    "basis": None,
    "merged": None,
}
WANDB_ID = re.compile(r"[\w-]{1,128}", re.ASCII)  # the id becomes part of a folder's name


def check_info(step: int, info: Mapping[str, Any]) -> dict[str, Any]:
    """Check the type of every value in a checkpoint's state; numbers were found to be finite before.

    Raises:
        CheckpointError: a value has another type; names the first such value.
    """
    values = {**ADDED_LATER, **info}
    for key, (is_valid, expected) in EXPECTED.items():
        if key not in values or not is_valid(values[key]):
            raise CheckpointError(
                f"the checkpoint of step {step} is damaged: {key} is {str(values.get(key))[:60]!r}. Expected "
                f"{expected}. {REMEDY}"
            )
    return values


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_integer(value: Any, least: int) -> bool:
    return type(value) is int and value >= least


def _are_lengths(value: Any) -> bool:
    return isinstance(value, list) and all(_is_number(x) and x >= 0 for x in value)


def _is_cache(value: Any) -> bool:
    if not isinstance(value, dict) or type(value.get("unit")) is not bool:
        return False
    if not all(_is_integer(value.get(key, 1), 1) for key in ("interval", "due")):
        return False
    alpha, norms = (value.get(key, "none") for key in ("alpha", "norms"))
    if alpha is None or norms is None:
        return alpha is norms
    guards = value.get("guards")  # older checkpoints have none
    if guards is not None and not (
        isinstance(guards, list) and [type(one) for one in guards] == [bool] * len(alpha)
    ):
        return False
    return _are_numbers(alpha) and _are_lengths(norms) and len(alpha) == len(norms)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(_is_number(x) for x in value)


def _are_scores(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(row, list) and all(x is None or _is_number(x) for x in row) for row in value.values()
    )


def _is_merge(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("method"), str)
        and isinstance(value.get("loras"), list)
        and all(isinstance(name, str) for name in value["loras"])
        and _are_numbers(value.get("weights"))
        and len(value["loras"]) == len(value["weights"])
    )


EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "cache": (_is_cache, "shares and norms of as many rewards"),
    "base_scores": (_are_scores, "numbers or null by reward"),
    "basis": (lambda value: value is None or isinstance(value, dict), "what base scores depend on, or null"),
    "best": (lambda value: value is None or _is_number(value), "a number or null"),
    "best_step": (lambda value: value is None or _is_integer(value, 0), "a step or null"),
    "best_metric": (lambda value: isinstance(value, str), "the name of a metric"),
    "evaluated": (lambda value: _is_integer(value, -1), "a step or -1"),
    "wandb_id": (
        lambda value: value is None or (isinstance(value, str) and bool(WANDB_ID.fullmatch(value))),
        "up to 128 letters, digits, - and _, or null",
    ),
    "merged": (
        lambda value: value is None or _is_merge(value),
        "the method, LoRAs and weights of a merge, or null",
    ),
    "rollbacks": (lambda value: _is_integer(value, 0), "a number of rollbacks"),
    "kl_coef": (lambda value: value is None or (_is_number(value) and value > 0), "a number above 0 or null"),
}


def check_tensors(
    state: TrainerState, trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Check that behaviour weights and moments match the `trained` parameters and the `optimizer`.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape or type; names the first such one.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in trained.items()}
    _check_shapes(state, "behaviour", shapes)
    forms = expected_moments(optimizer, trained) if state.tensors.get("optimizer") else {}
    _check_shapes(state, "optimizer", {name: shape for name, (shape, _) in forms.items()})
    for name, (_, kind) in forms.items():
        values = state.tensors["optimizer"][name]
        if values.dtype != kind:
            fault = f"is of type {values.dtype}"
        elif not name.endswith(SIGNED) and bool((values < 0).any()):
            fault = "is below 0"
        else:
            continue
        raise CheckpointError(f"the checkpoint of step {state.step} is damaged: {name} {fault}. {REMEDY}")


def _check_shapes(state: TrainerState, group: str, expected: Mapping[str, tuple[int, ...]]) -> None:
    found: Mapping[str, Tensor] = state.tensors.get(group, {})
    if misfits := find_misfits(expected, found):
        raise CheckpointError(
            f"{group}.safetensors of the checkpoint of step {state.step} "
            f"{describe_misfits(misfits, expected, found)}. {REMEDY}"
        )
