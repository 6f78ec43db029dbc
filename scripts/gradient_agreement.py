"""Measure how much of each reward's gradient is signal, by the cosines between independent steps.

    python -m scripts.gradient_agreement [--steps 5] [OVERRIDE ...]

Rolls out several steps from the base model without training, and takes every reward's own gradient on each,
without the shared term. Two steps have only the model in common. If the mean cosine between their gradients
is c, a share c of a gradient's squared length is signal and the rest is noise. The first row uses the
configured training times, the others one of the solver's times alone.
"""

import argparse
import sys
from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from marble_cli.config.compose import compose
from marble_cli.config.enums import SharedTerm
from marble_cli.config.schema import RunConfig
from marble_cli.objective.coefficients import Coefficients, reward_coefficients
from marble_cli.policy.load import load_policy
from marble_cli.rewards.scorer import open_scorer
from marble_cli.run.loop import Trainer
from marble_cli.step.batches import TrainingSet, chunks
from marble_cli.step.gradients import reward_gradients
from marble_cli.step.passes import Objective, Step
from marble_cli.step.reward_signal import read_signal
from scripts.trainer import make_trainer

LAST_TIME_LEFT_OUT = 0.99  # share of the solver's times to look at: hardly any signal is left at the last


def agreement(steps: Tensor) -> Tensor:
    """Return the mean cosine [K] between gradients [S, K, P] of different steps."""
    unit = steps / torch.linalg.vector_norm(steps, dim=2, keepdim=True)
    cosine = torch.einsum("skp,tkp->kst", unit, unit)
    count = len(steps)
    return (cosine.sum((1, 2)) - count) / (count * (count - 1))


def reward_rows(step: Step, rewards: Coefficients) -> Tensor:
    """Return each reward's own gradient [K, P] float64 over all micro-batches of a step."""
    no_shared_term = Coefficients(torch.zeros_like(rewards.p[0]), torch.zeros_like(rewards.q[0]))
    parts = chunks(step.data, step.objective.micro_batch_size)
    return reward_gradients(step, parts, rewards, no_shared_term).rows[:-1].double()


def step_gradients(trainer: Trainer, number: int, single_times: Tensor) -> tuple[Tensor, Tensor]:
    """Roll out one step and take its gradients without updating any weight.

    Args:
        trainer: of the base model.
        number: of the step, which its prompts and noise depend on.
        single_times: [T] solver times to train on alone.

    Returns:
        Gradients [K, P] over the configured training times, and [T, K, P] over each single time.
    """
    settings, algorithm = trainer.config.trainer, trainer.config.algorithm
    drawn = trainer.drawing.draw(number)
    scores = drawn.scores
    signal = read_signal(scores.values.nan_to_num(), scores.applicable, drawn.groups, algorithm)
    coefficients = reward_coefficients(signal.optimality, signal.applicable, shared_term=SharedTerm.outside)
    configured = drawn.training_set(trainer.config, number, trainer.rollout, None, rank=0)
    images = len(drawn.groups)
    alone = [replace(configured, times=t.repeat(images, 1), samples=images) for t in single_times]
    # No KL term: only the rewards' own gradients are compared.
    clip = algorithm.advantage.clip
    objective = Objective(algorithm.beta, clip, 0.0, settings.seed, settings.micro_batch_size)

    def gradients(data: TrainingSet) -> Tensor:
        step = Step(trainer.policy, trainer.layout, data, objective, number, lambda count: None)
        return reward_rows(step, coefficients.rewards)

    return gradients(configured), torch.stack([gradients(data) for data in alone])


def measure(config: RunConfig, steps: int) -> tuple[Tensor, list[tuple[float, Tensor]]]:
    """Return the agreement [K] over the configured times, and (t, agreement [K]) of each single time."""
    policy = load_policy(config.model, config.trainer.seed)
    with open_scorer(config.rewards, str(policy.device)) as scorer:
        trainer = make_trainer(config, policy, scorer)
        times = trainer.rollout.times()[: max(1, int(config.rollout.steps * LAST_TIME_LEFT_OUT))]
        per_step = [step_gradients(trainer, number, times) for number in range(1, steps + 1)]
    together = torch.stack([configured for configured, _ in per_step])
    alone = torch.stack([singles for _, singles in per_step], dim=1)
    return agreement(together), [(float(t), agreement(rows)) for t, rows in zip(times, alone, strict=True)]


def main(arguments: list[str]) -> None:
    """Measure what the command line asks for and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.gradient_agreement",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=5, help="independent steps to compare (%(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="settings, as for `marble train`")
    options = parser.parse_args(arguments)
    config = compose(["preset=tiny", *options.overrides])
    together, singles = measure(config, options.steps)
    table = Table("training times", *config.rewards, box=None)
    table.add_row("as configured", *(f"{value:.3f}" for value in together.tolist()))
    for t, values in singles:
        table.add_row(f"t = {t:.3f} alone", *(f"{value:.3f}" for value in values.tolist()))
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
