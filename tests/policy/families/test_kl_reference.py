"""The guided reference of the KL term, where prompts and negative prompts have different lengths."""

import torch

from marble_cli.distributed.layout import Replicated
from marble_cli.distributed.ranks import Ranks
from marble_cli.rollout.guidance import Guidance
from marble_cli.step.batches import TrainingSet, chunks, noised_batches
from marble_cli.step.passes import Objective, Step
from tests.policy.families.cases import PROMPTS, TIMES, Case

AWAY = ["blurred", "grey, dull and with a frame", "dark"]


@torch.no_grad()
def test_reference_of_a_batch_is_that_of_each_image_alone(case: Case) -> None:
    """By the family's own rule of guidance, from a pass of the prompt and one of the negative prompt."""
    policy, images = case.policy, torch.arange(3)
    prompts, negatives = case.encode(policy), case.encode(policy, AWAY, negative=True)
    times = TIMES.clamp(max=0.9)[:, None]
    data = TrainingSet(case.start(), prompts, images, images, times, samples=3, negatives=negatives)
    objective = Objective(0.3, 1.0, 0.5, 0, micro_batch_size=3, guidance=Guidance(4.0))
    (batch,) = noised_batches(data, chunks(data, 3), 0, 1)
    step = Step(policy, Replicated(Ranks.alone()), data, objective, 1, lambda count: None)
    found = step.reference(batch)
    for i in range(3):
        xt, t = batch.xt[i : i + 1], batch.t[i : i + 1]
        towards, away = (
            policy.velocity(xt, t, case.encode(policy, [text], negative=negative), None)
            for text, negative in ((PROMPTS[i], False), (AWAY[i], True))
        )
        expected = policy.guided(towards, away, 4.0)
        torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-3, atol=1e-4)
        assert (expected - towards).abs().max() > 1e-3
