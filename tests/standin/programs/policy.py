"""Encode, draw, train and decode with the pipeline that overrides name, on the stand-in device.

The overrides up to the first "--" are those of all policies; further ones between two "--" are one policy's.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import torch

from marble_cli.config.compose import compose
from marble_cli.config.resolution import read_resolution
from marble_cli.policy.base import PromptEmbeddings
from marble_cli.policy.families.qwen_image_edit import QwenImageEdit, QwenImageEditPlus
from marble_cli.policy.load import load_policy
from tests.gpu.test_families import gradients
from tests.policy.families.cases import PROMPTS, TIMES
from tests.policy.families.edits import Drawn


def attempt(overrides: Sequence[str]) -> None:
    """Take a refresh's and an amortised step's gradients, and pictures; each must be on its own device."""
    model = compose(overrides).model
    policy = load_policy(model, seed=0)
    pictures = [(Drawn(prompt),) for prompt in PROMPTS] if policy.conditions else None
    if not type(policy.family).__name__.startswith("QwenImage"):  # which cut prompts by their masks
        policy.encode(PROMPTS, pictures)
    on_cpu = load_policy(replace(model, device="cpu"), seed=0)

    # On the CPU: masks made on the stand-in hold no values, and so no lengths.
    encoded = on_cpu.encode(PROMPTS, pictures)
    moved = {name: part.to(policy.device) for name, part in encoded.tensors.items()}
    embeddings = PromptEmbeddings(moved, encoded.lengths)
    xt = torch.zeros(len(PROMPTS), *policy.latent_shape, device=policy.device)
    with torch.no_grad():
        velocity = policy.velocity(xt, 0.9 * TIMES.to(policy.device), embeddings, "behaviour")
    found = gradients(policy, embeddings)
    assert {tensor.device.type for tensor in (velocity, *(one.rows for one in found))} == {"cuda"}
    assert {tensor.dtype for tensor in (velocity, *(one.rows for one in found))} == {torch.float32}
    size = read_resolution(policy.model.resolution)
    frames = () if policy.frames is None else (policy.frames,)
    assert policy.decode(velocity)[0].shape == (len(PROMPTS), *frames, 3, size.height, size.width)


def main() -> None:
    """Try each policy in turn."""
    QwenImageEdit.latent_area = QwenImageEdit.seen_area = QwenImageEditPlus.seen_area = 64 * 64
    shared, *each = (list(words) for between, words in groupby(sys.argv[1:], "--".__eq__) if not between)
    for overrides in each:
        print("with", *overrides, flush=True)
        attempt([*shared, *overrides])


main()
