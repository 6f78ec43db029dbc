"""Classifier-free guidance in closed form, where each sample may have its own time."""

import torch
from torch import Tensor

from marble_cli.policy.families.guidance import guide_from_negative
from marble_cli.rollout.guidance import Guidance


def test_samples_beyond_the_truncation_have_the_prompts_velocity() -> None:
    draw = torch.Generator().manual_seed(0)
    positive, negative = torch.randn(2, 3, 2, 4, 4, generator=draw, dtype=torch.float64).unbind()
    t = torch.tensor([0.9, 0.5, 0.05])
    found = Guidance(3.0, truncation=0.8).combine(positive, negative, t, guide_from_negative)
    torch.testing.assert_close(found[:2], 3 * positive[:2] - 2 * negative[:2], rtol=1e-12, atol=1e-12)
    assert torch.equal(found[2], positive[2])
    bounded = Guidance(3.0, normalization=1.0).combine(positive, negative, t, guide_from_negative)
    torch.testing.assert_close(bounded.flatten(1).norm(dim=1), positive.flatten(1).norm(dim=1))


def test_solver_takes_no_pass_of_the_negative_prompt_after_guidance_has_ended() -> None:
    times: list[float] = []

    def negative(xt: Tensor, t: Tensor) -> Tensor:
        times.append(float(t[0]))
        return torch.zeros_like(xt)

    velocity = Guidance(3.0, truncation=0.8).guide(lambda xt, t: xt, negative, guide_from_negative)
    xt = torch.ones(2, 1, 4, 4)
    values = [velocity(xt, torch.full((2,), t)).mean().item() for t in (0.5, 0.1)]
    assert (values, times) == ([3.0, 1.0], [0.5])
