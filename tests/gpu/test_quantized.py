"""Quantised layers and 8-bit moments compute on this device what they compute on the CPU.

The tests of tests/policy and tests/run, and what only a GPU can show: near the CPU's quantised layers, in
bfloat16, and compiled. Rounding weights on another device moves a scale by a bit, and so a weight that is
half-way between two levels to the other one.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from marble_cli.config.enums import Precision, Quantization, Switch
from marble_cli.config.schema import ModelConfig
from marble_cli.policy.load import load_policy
from marble_cli.policy.quantization import PACKAGES
from tests.gpu.test_families import Z_IMAGE_IN_BFLOAT16, distance, gradients
from tests.policy.conftest import tiny_folder
from tests.policy.families.cases import PROMPTS, Case
from tests.policy.families.conftest import case, edits_folder, small_pictures
from tests.policy.families.test_quantization import (
    NEAR,
    kind,
    rounded,
    start,
    test_gradients_of_every_mixture_at_once_are_those_of_autograd,
    test_only_linear_layers_of_the_blocks_are_rounded,
    test_velocities_and_embeddings_are_near_those_of_plain_layers,
)
from tests.policy.trainable.compiler import NEEDS_COMPILER
from tests.run.test_adamw8bit import (
    settings,
    test_it_moves_weights_nearly_as_adamw_does,
    test_moments_are_bytes_and_scales_and_load_into_a_fresh_optimizer,
    test_resumed_run_equals_the_uninterrupted_one,
    whole,
)
from tests.run.test_quantization import (
    test_embeddings_of_quantised_encoders_have_files_of_their_own,
    test_resumed_run_is_exact_and_its_export_fits_the_plain_model,
)

__all__ = [
    "case",
    "edits_folder",
    "kind",
    "rounded",
    "settings",
    "small_pictures",
    "test_embeddings_of_quantised_encoders_have_files_of_their_own",
    "test_gradients_of_every_mixture_at_once_are_those_of_autograd",
    "test_it_moves_weights_nearly_as_adamw_does",
    "test_moments_are_bytes_and_scales_and_load_into_a_fresh_optimizer",
    "test_only_linear_layers_of_the_blocks_are_rounded",
    "test_resumed_run_equals_the_uninterrupted_one",
    "test_resumed_run_is_exact_and_its_export_fits_the_plain_model",
    "test_velocities_and_embeddings_are_near_those_of_plain_layers",
    "tiny_folder",
    "whole",
]

for package in set(PACKAGES.values()):
    pytest.importorskip(package)
pytestmark = pytest.mark.usefixtures("deterministic")

Randomise = Callable[..., None]
# Of the error that rounding makes, the share by which two devices may differ.
OF_ROUNDING = 0.2
ENCODERS = (
    10  # times what a velocity errs: the small encoders round most, and one in int8 was 0.019 off on an H100
)
# Distances in bfloat16 from float32, as in test_families.
HALF_VALUES, HALF_GRADIENTS = 0.05, 0.3


def test_velocities_and_embeddings_are_those_of_the_cpu(
    case: Case, kind: Quantization, rounded: Any, randomise: Randomise
) -> None:
    on_cpu = load_policy(replace(case.model, quantization=kind, device="cpu"), seed=0)
    randomise(on_cpu)
    encoded = case.encode(on_cpu)
    xt, t = start(case)
    moved = type(encoded)({n: part.to(xt.device) for n, part in encoded.tensors.items()}, encoded.lengths)
    with torch.no_grad():
        for adapter in ("trained", "behaviour", None):
            found = rounded.velocity(xt, t, moved, adapter)
            expected = on_cpu.velocity(xt.cpu(), t.cpu(), encoded, adapter)
            assert distance(found, expected) < OF_ROUNDING * NEAR[kind], adapter
    for name, tensor in case.encode(rounded).tensors.items():
        if tensor.is_floating_point():
            assert distance(tensor, encoded.tensors[name]) < OF_ROUNDING * ENCODERS * NEAR[kind], name


def test_gradients_in_half_precision_are_near_those_in_single(
    case: Case, kind: Quantization, rounded: Any, randomise: Randomise
) -> None:
    near = Z_IMAGE_IN_BFLOAT16 if case.name == "z_image" else HALF_GRADIENTS
    half = load_policy(replace(case.model, quantization=kind, precision=Precision.bf16), seed=0)
    randomise(half)
    for one, other in zip(*(gradients(p, case.encode(p)) for p in (half, rounded)), strict=True):
        scored = other.losses != 0
        assert distance(one.losses[scored], other.losses[scored]) < HALF_VALUES
        for row, expected in zip(one.rows, other.rows, strict=True):
            assert row.isfinite().all()
            # nf4 rounds bfloat16 weights to other levels, which makes another model: 0.86 on an H100.
            assert kind is Quantization.nf4 or distance(row, expected) < near


@NEEDS_COMPILER
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_compute_as_eager_ones(
    model: ModelConfig, kind: Quantization, randomise: Randomise
) -> None:
    """A plain pass: all three velocities, and one gradient."""
    found = []
    for switch in (Switch.false, Switch.true):
        policy = load_policy(replace(model, quantization=kind, compile=switch), seed=0)
        randomise(policy)
        noise = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
        at = (
            noise.to(policy.device),
            torch.tensor([0.3, 0.9], device=policy.device),
            policy.encode(PROMPTS[:2]),
        )
        with torch.no_grad():
            values = [policy.velocity(*at, adapter) for adapter in ("behaviour", None)]
        trained = policy.velocity(*at, "trained")
        parameters = list(policy.parameters("trained").values())
        parts = torch.autograd.grad(trained.square().sum(), parameters)
        found.append([*values, trained, torch.cat([part.flatten() for part in parts])])
        assert policy.compiled == (switch is Switch.true)
    for eager, compiled in zip(*found, strict=True):
        assert distance(compiled, eager) < 1e-3
