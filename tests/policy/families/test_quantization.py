"""Quantised frozen layers in every family: near the plain velocities, exact gradients on top of them."""

from typing import Any

import pytest
import torch
from torch import nn

from marble_cli.config.enums import Quantization
from marble_cli.policy.trainable.blocks import repeated_blocks
from marble_cli.step.per_sample import PerSampleGradients
from tests.policy.families.cases import Case
from tests.policy.families.pipelines import ONE_PER_NETWORK, TRANSFORMERS

# Largest relative errors of velocities; embeddings of these encoders, 8 numbers wide, may have thrice that.
NEAR = {Quantization.int8: 0.02, Quantization.fp8: 0.08, Quantization.nf4: 0.2}
# torchao's two kinds are one code, in whose layers weights keep their type; those of bitsandbytes are bytes.
TORCHAO = Quantization.int8, Quantization.fp8
PAIRS = [
    *(("sd3", kind) for kind in NEAR),
    *((case, TORCHAO[place % 2]) for place, case in enumerate(ONE_PER_NETWORK)),
    *((case, Quantization.nf4) for case in ONE_PER_NETWORK),
]


@pytest.fixture(scope="module", params=list(NEAR), ids=lambda kind: kind.value)
def kind(request: pytest.FixtureRequest) -> Quantization:
    chosen: Quantization = request.param
    return chosen


@pytest.fixture(scope="module")
def rounded(case: Case, kind: Quantization) -> Any:
    """The family's policy with quantised layers, and the same adapters."""
    return case.load(quantization=kind)


def start(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """The latents and times of a velocity, where the policy computes."""
    device = case.policy.device
    return case.start().to(device), case.times.to(device)


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize(("case", "kind"), [pair for pair in PAIRS if pair[0] in TRANSFORMERS], indirect=True)
def test_velocities_and_embeddings_are_near_those_of_plain_layers(
    case: Case, kind: Quantization, rounded: Any
) -> None:
    plain, at = case.policy, start(case)
    with torch.no_grad():
        encoded = case.encode(plain)
        for adapter in ("trained", "behaviour", None):
            found, exact = (policy.velocity(*at, encoded, adapter) for policy in (rounded, plain))
            assert 0 < error(found, exact) < NEAR[kind], adapter
        for name, tensor in case.encode(rounded).tensors.items():
            if name in ("mask", "attended", "condition"):  # the VAE is not quantised
                assert tensor.equal(encoded.tensors[name])
            else:
                assert 0 < error(tensor, encoded.tensors[name]) < 3 * NEAR[kind], name


@pytest.mark.parametrize(("case", "kind"), PAIRS, indirect=True)
def test_only_linear_layers_of_the_blocks_are_rounded(case: Case, rounded: Any) -> None:
    """Everything else keeps its bits, and the digest is the model's: its LoRAs fit the plain model, too."""
    blocks = {id(module) for block in repeated_blocks(rounded.network) for module in block.modules()}
    plain = dict(case.policy.network.named_parameters())
    seen = set()
    for name, module in rounded.network.named_modules():
        if isinstance(module, nn.Linear) and "lora_" not in name:
            is_plain = type(module.weight) is nn.Parameter and module.weight.equal(plain[f"{name}.weight"])
            assert is_plain == (id(module) not in blocks), name
            assert not module.weight.requires_grad
            seen.add(is_plain)
    assert seen == {True, False}
    assert rounded.weights == case.policy.weights


@pytest.mark.parametrize(("case", "kind"), [pair for pair in PAIRS if pair[0] in TRANSFORMERS], indirect=True)
def test_gradients_of_every_mixture_at_once_are_those_of_autograd(case: Case, rounded: Any) -> None:
    draw, (xt, t) = torch.Generator().manual_seed(5), start(case)
    cotangent = torch.randn(xt.shape, generator=draw).to(xt)
    coefficients = torch.randn(2, len(xt), generator=draw).to(xt)
    parameters = list(rounded.parameters("trained").values())
    rows = xt.new_zeros(2, sum(p.numel() for p in parameters))
    at = (xt, t, case.encode(rounded), "trained")
    mixer = PerSampleGradients(rounded.layers(), rows)
    with mixer.watching():
        mixer.mix(rounded.velocity(*at), cotangent, coefficients, retain_graph=False)
    for row, own in zip(rows, coefficients, strict=True):
        loss = ((rounded.velocity(*at) * cotangent).flatten(1).sum(1) * own).sum()
        parts = torch.autograd.grad(loss, parameters, materialize_grads=True, allow_unused=True)
        expected = torch.cat([part.flatten() for part in parts])
        assert (row - expected).norm() < 1e-4 * expected.norm()
