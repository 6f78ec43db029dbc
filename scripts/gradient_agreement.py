"""How much of a step's gradient is signal: cosines between the gradients of independent steps, reward by reward.

    python scripts/gradient_agreement.py [--steps 5] [OVERRIDE ...]

Rolls out several steps from the base model without training and takes every reward's own gradient (the shared term left
out) on each. Two steps share nothing but the model, so the mean cosine c between them says that a share c of a gradient's
squared length is signal and the rest is noise. Printed for all training times of the configuration together and for each
of the solver's times alone.
"""

import argparse

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from marble_cli.config.compose import compose
from marble_cli.config.schema import RunConfig, SharedTerm, TrainingNoise
from marble_cli.data.prompts import load_prompts
from marble_cli.distributed.layout import Replicated
from marble_cli.distributed.ranks import Ranks
from marble_cli.objective.coefficients import Coefficients, reward_coefficients
from marble_cli.policy.load import load_policy
from marble_cli.rewards.scorer import open_scorer
from marble_cli.rollout.collect import Rollout
from marble_cli.run.build import build_sampler
from marble_cli.step.batches import TrainingSet, chunks, training_times
from marble_cli.step.gradients import Objective, Step, reward_gradients
from marble_cli.step.reward_signal import read_signal


def agreement(steps: Tensor) -> Tensor:
    """Mean cosine [K] between the gradients [S, K, P] of different steps."""
    unit = steps / torch.linalg.vector_norm(steps, dim=2, keepdim=True)
    cosine = torch.einsum("skp,tkp->kst", unit, unit)
    count = len(steps)
    return (cosine.sum((1, 2)) - count) / (count * (count - 1))


def gradients(step: Step, rewards: Coefficients) -> Tensor:
    """Each reward's own gradient [K, P] float64 on all micro-batches of a step."""
    nothing = Coefficients(torch.zeros_like(rewards.p[0]), torch.zeros_like(rewards.q[0]))
    parts = chunks(step.data, step.objective.micro_batch_size)
    return reward_gradients(step, parts, rewards, nothing).rows[:-1].double()


def measure(config: RunConfig, steps: int) -> tuple[list[str], Tensor, list[tuple[float, Tensor]]]:
    """Rewards' names, their agreement [K] over the configured times, and (t, agreement [K]) for each time alone."""
    policy = load_policy(config.model, config.trainer.seed)
    sampler = build_sampler(config, load_prompts(config.data, "train"))
    trainer, algorithm, size = config.trainer, config.algorithm, config.rollout.group_size
    objective = Objective(
        algorithm.beta, algorithm.advantage.clip, 0.0, trainer.seed, trainer.micro_batch_size
    )
    ranks = Ranks.alone()
    together, alone = [], []
    with open_scorer(config.rewards, str(policy.device)) as scorer:
        rollout = Rollout(policy, config.rollout, config.trainer.seed)
        times = rollout.times()[: max(1, int(config.rollout.steps * 0.99))]
        for step in range(1, steps + 1):
            prompts = [prompt for prompt in sampler.step(step) for _ in range(size)]
            own = torch.arange(len(prompts))
            samples = rollout.collect(
                prompts, own.tolist(), scorer=scorer, adapter="behaviour", purpose="rollout", step=step,
                advance=lambda count: None,
            )  # fmt: skip
            scores = samples.scores(ranks)
            signal = read_signal(scores.values, scores.applicable, own // size, algorithm)
            rewards = reward_coefficients(
                signal.optimality, signal.applicable, shared_term=SharedTerm.outside
            ).rewards
            draws = own // size if algorithm.training_noise is TrainingNoise.group else own
            chosen = training_times(
                rollout.times(), trainer.timestep_fraction, trainer.times_per_image, draws.tolist(),
                trainer.seed, step, algorithm.training_times,
            )  # fmt: skip

            found = [
                gradients(Step(policy, Replicated(ranks), data, objective, step, lambda count: None), rewards)
                for at in (chosen, *(t.repeat(len(own), 1) for t in times))
                for data in [TrainingSet(samples.x0, samples.embeddings, own, draws, at, at.numel())]
            ]
            together.append(found[0])
            alone.append(torch.stack(found[1:]))
    each = torch.stack(alone)
    singles = [(float(t), agreement(each[:, place])) for place, t in enumerate(times)]
    return list(config.rewards), agreement(torch.stack(together)), singles


def main(steps: int, overrides: list[str]) -> None:
    names, together, singles = measure(compose(["preset=tiny", *overrides]), steps)
    table = Table("training times", *names, box=None)
    table.add_row("as configured", *(f"{value:.3f}" for value in together.tolist()))
    for t, values in singles:
        table.add_row(f"t = {t:.3f} alone", *(f"{value:.3f}" for value in values.tolist()))
    Console().print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("overrides", nargs="*", help="any override of marble train")
    options = parser.parse_args()
    main(options.steps, options.overrides)
