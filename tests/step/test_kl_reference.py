"""A guided reference of the KL term: its definition image by image, its passes, and the plan of them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from marble_cli.config.enums import KlReference
from marble_cli.config.schema import RunConfig
from marble_cli.objective.coefficients import Coefficients
from marble_cli.plan.work import add_passes
from marble_cli.policy.base import PromptEmbeddings
from marble_cli.rollout.guidance import Guidance
from marble_cli.seeds import noise
from marble_cli.step.batches import chunks
from marble_cli.step.gradients import mixture_gradient
from marble_cli.step.passes import make_objective
from marble_cli.step.step_gram import all_chunks
from tests.step.conftest import flat
from tests.step.directions import STEP, distance, only_lora

SCALE = 3.5
NOTHING = Coefficients(torch.zeros(12).double(), torch.zeros(12).double())


def guided(case: Any, policy: Any, scale: float = SCALE, **objective: Any) -> Any:
    """The case with negative prompts, two in turn, and a guided reference."""
    encoded = policy.encode(["", "grey and blurred"], negative=True)[torch.arange(12) % 2]
    negatives = PromptEmbeddings({name: tensor.double() for name, tensor in encoded.tensors.items()})
    return replace(
        case,
        data=replace(case.data, negatives=negatives),
        objective=replace(case.objective, **{"guidance": Guidance(scale), **objective}),
    )


def test_pull_is_towards_the_guided_velocity(case: Any, double_policy: Any) -> None:
    """v_ref = v_empty + s (v_prompt - v_empty), by plain autograd over every sample."""
    one, losses = guided(case, double_policy), []
    data = one.data
    for i, column in [(i, column) for column in range(2) for i in range(12)]:
        t = data.times[i, column].to(data.x0)[None]
        eps = noise(0, f"train{column}", STEP, [40 + i // 2], tuple(data.x0.shape[1:])).to(data.x0)
        xt = (1 - t) * data.x0[i : i + 1] + t * eps
        prompt, empty = data.embeddings[i : i + 1], data.negatives[i : i + 1]
        with torch.no_grad():
            away, towards = (double_policy.velocity(xt, t, one, None) for one in (empty, prompt))
        v = double_policy.velocity(xt, t, prompt, "trained")
        losses.append((v - (away + SCALE * (towards - away))).square().mean())
    expected = 0.7 * torch.stack(losses).mean()
    found = mixture_gradient(one.step(double_policy), chunks(data, 5), NOTHING)
    assert found.losses[-1].item() == pytest.approx(expected.item(), rel=1e-12)
    assert distance(found.rows[0].cpu(), flat(expected, double_policy)) < 1e-10


def test_scale_of_1_is_the_base_model(case: Any, double_policy: Any, reference: Any) -> None:
    one = guided(case, double_policy, 1.0)
    found = mixture_gradient(one.step(double_policy), chunks(one.data, 5), NOTHING).rows[0].cpu()
    assert distance(found, reference.kl) < 1e-10


@only_lora
def test_plan_counts_the_passes_of_the_reference(
    case: Any, double_policy: Any, run_config: Callable[..., RunConfig]
) -> None:
    """Of six micro-batches at two times, those at one time have a KL term: 12 samples."""
    config = run_config("trainer.steps=1", "algorithm.kl_every=2")
    data = guided(case, double_policy).data

    def counted(run: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    def spent(**objective: Any) -> int:
        one = guided(case, double_policy, kl_every=2, **objective)
        step = one.step(double_policy)
        return counted(lambda: [*step.passes(all_chunks(step))])

    def planned(reference: KlReference) -> float:
        config.algorithm.kl_reference = reference
        return add_passes(config, 0, 24, 6, float(forward), 0.0)

    t = data.times[:1, 0].to(data.x0)
    forward = counted(lambda: double_policy.velocity(data.x0[:1], t, data.negatives[:1], None))
    assert forward > 0
    assert planned(KlReference.guided) - planned(KlReference.base) == spent() - spent(guidance=None)


def test_scale_is_that_of_the_key_or_of_rollouts(run_config: Callable[..., RunConfig]) -> None:
    assert make_objective(run_config()).guidance is None
    key, rollout = "algorithm.kl_guidance=4.5", "rollout.guidance_scale=3"
    scales = []
    for more in ((key,), (rollout,), (rollout, key)):
        config = run_config("algorithm.kl_reference=guided", "rollout.cfg_truncation=0.9", *more)
        guidance = make_objective(config).guidance
        assert guidance is not None
        assert guidance.truncation == 0.9
        scales.append(guidance.scale)
    assert scales == [4.5, 3, 4.5]
