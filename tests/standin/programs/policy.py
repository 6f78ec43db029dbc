"""Encode, draw, train and decode with the pipeline that overrides name, on the stand-in device."""

import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

from marble_cli.config.compose import compose
from marble_cli.policy.base import PromptEmbeddings
from marble_cli.policy.load import load_policy
from tests.gpu.test_families import gradients
from tests.policy.families.cases import PROMPTS, TIMES


def main() -> None:
    """Take a refresh's and an amortised step's gradients, and pictures; each must be on its own device."""
    model = compose(sys.argv[1:]).model
    policy = load_policy(model, seed=0)
    if type(policy.family).__name__ != "QwenImage":  # which cuts prompts by their masks
        policy.encode(PROMPTS)
    on_cpu = load_policy(replace(model, device="cpu"), seed=0)

    def encode(prompts: Sequence[str]) -> PromptEmbeddings:
        """Encode on the CPU: masks made on the stand-in hold no values, and so no lengths."""
        found = on_cpu.encode(prompts)
        return PromptEmbeddings(
            {name: part.to(policy.device) for name, part in found.tensors.items()}, found.lengths
        )

    policy.encode = encode  # type: ignore[method-assign]
    embeddings = encode(PROMPTS)
    xt = torch.zeros(len(PROMPTS), *policy.latent_shape, device=policy.device)
    with torch.no_grad():
        velocity = policy.velocity(xt, 0.9 * TIMES.to(policy.device), embeddings, "behaviour")
    found = gradients(policy)
    assert {tensor.device.type for tensor in (velocity, *(one.rows for one in found))} == {"cuda"}
    assert {tensor.dtype for tensor in (velocity, *(one.rows for one in found))} == {torch.float32}
    assert policy.decode(velocity).shape == (len(PROMPTS), 3, *[policy.model.resolution] * 2)


main()
