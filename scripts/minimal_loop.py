"""Train on several rewards in one page: MARBLE without ranks, caches, checkpoints or recovery.

    python scripts/minimal_loop.py [--steps 3] [OVERRIDE ...]

The order is that of docs/explanation/algorithm.md. `marble train` also has several processes, the amortised
step, the cheap refresh (here every reward takes a backward pass of its own at every step), evaluations,
checkpoints, and rewards that may fail. A test holds the first step to the trainer's.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from marble_cli.balance.base import Balance
from marble_cli.balance.constant import ScalarisedReward
from marble_cli.balance.gram import gram
from marble_cli.config.compose import compose
from marble_cli.config.enums import TrainingNoise
from marble_cli.config.schema import RunConfig
from marble_cli.data.prompts import load_prompts
from marble_cli.data.schedule import PromptSampler
from marble_cli.distributed.ranks import Ranks
from marble_cli.objective.advantages import advantages, optimality
from marble_cli.objective.coefficients import reward_coefficients
from marble_cli.objective.nft import kl_term, mixed_loss, nft_terms
from marble_cli.policy.base import Policy
from marble_cli.policy.load import load_policy
from marble_cli.policy.trainable.ema import behaviour_eta, blend
from marble_cli.rewards.scorer import Scorer, open_scorer
from marble_cli.rollout.collect import Rollout
from marble_cli.run.build import build_balance, build_optimizer, build_sampler
from marble_cli.step.batches import NoisedBatch, TrainingSet, chunks, noised_batches, training_times


@dataclass(frozen=True)
class Parts:
    """What a run is made of."""

    config: RunConfig
    policy: Policy
    rollout: Rollout
    scorer: Scorer
    balance: Balance
    sampler: PromptSampler
    optimizer: torch.optim.Optimizer


def train_step(parts: Parts, step: int) -> Tensor:
    """Take one optimizer step; return the cosines [K] of its direction and the rewards' gradients."""
    config, policy, rollout = parts.config, parts.policy, parts.rollout
    algorithm, settings, size = config.algorithm, config.trainer, config.rollout.group_size

    # 1 Rollout: G prompts, M images each, from the behaviour policy.
    prompts = [prompt for prompt in parts.sampler.step(step) for _ in range(size)]
    images = torch.arange(len(prompts))
    samples = rollout.collect(
        prompts,
        images.tolist(),
        scorer=parts.scorer,
        adapter="behaviour",
        purpose="rollout",
        step=step,
        advance=lambda count: None,
    )

    # 2 Rewards, and 3 advantages: separately per reward, relative to the other images of the same prompt.
    scores = samples.scores(Ranks())
    advantage = advantages(scores.values, scores.applicable, images // size, std=algorithm.advantage.std)
    r = optimality(advantage, algorithm.advantage.clip)

    # 4 Loss: it is affine in r, so each reward is a row of coefficients p and q of the losses P and N.
    coefficients = reward_coefficients(r, scores.applicable, shared_term=config.balance.shared_term)
    draws = images // size if algorithm.training_noise is TrainingNoise.group else images
    share, count, rule = settings.timestep_fraction, settings.times_per_image, algorithm.training_times
    times = training_times(rollout.times(), share, count, draws.tolist(), settings.seed, step, rule)
    data = TrainingSet(samples.x0, samples.embeddings, images, draws, times, times.numel())
    parameters = list(policy.parameters("trained").values())
    rewards, shared = coefficients.rewards, coefficients.shared
    pairs = [*zip(rewards.p, rewards.q, strict=True), (shared.p, shared.q)]
    rows = torch.zeros(len(pairs), sum(parameter.numel() for parameter in parameters))
    for batch in noised_batches(data, chunks(data, settings.micro_batch_size), settings.seed, step):
        losses = list(batch_losses(config, policy, batch, data.samples, pairs))
        for row, loss in zip(rows, losses, strict=True):
            gradients = torch.autograd.grad(loss, parameters, retain_graph=loss is not losses[-1])
            row += torch.cat([gradient.flatten() for gradient in gradients])

    # 5 Balance: it sees only the Gram matrix of the rewards' gradients. The last row, the shared term and KL,
    # is added once and not weighted.
    weights = parts.balance(gram(rows[:-1])).weights
    balanced = weights.float() @ rows[:-1]
    gradient = balanced + rows[-1]

    # 7 Update: clipping, AdamW, behaviour policy. Step 6, the amortised step, is left out.
    gradient = gradient * min(1.0, config.optimizer.clip_norm / (gradient.norm().item() + 1e-6))
    for parameter, part in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)
    parts.optimizer.step()
    trained, behaviour = dict(policy.parameters("trained")), dict(policy.parameters("behaviour"))
    blend(behaviour, trained, behaviour_eta(algorithm.behaviour, step))
    return torch.cosine_similarity(balanced[None], rows[:-1])


def batch_losses(
    config: RunConfig, policy: Policy, batch: NoisedBatch, samples: int, pairs: list[tuple[Tensor, Tensor]]
) -> Iterator[Tensor]:
    """Yield a micro-batch's part of the losses of coefficients p and q [n]; the last includes the KL term."""
    algorithm = config.algorithm
    at, inputs = batch.indices, (batch.xt, batch.t, batch.embeddings)
    with torch.no_grad():
        v_old, v_ref = policy.velocity(*inputs, "behaviour"), policy.velocity(*inputs, None)
    v = policy.velocity(*inputs, "trained")
    terms = nft_terms(batch.x0, batch.xt, batch.t, v, v_old, beta=algorithm.beta)
    kl = algorithm.kl_coef * kl_term(v, v_ref).sum() / samples
    for k, (p, q) in enumerate(pairs):
        loss = mixed_loss(
            terms, p[at], q[at], clip=algorithm.advantage.clip, beta=algorithm.beta, count=samples
        )
        yield loss + kl if k == len(pairs) - 1 else loss


def train(steps: int, overrides: list[str]) -> Policy:
    """Train the embedded model, or the one that the overrides name, and print the cosines of every step.

    Raises:
        SystemExit: the balance is a sum of rewards, which has no gradient per reward.
    """
    config = compose(["preset=tiny", *overrides])
    policy = load_policy(config.model, config.trainer.seed)
    names = list(config.rewards)
    balance = build_balance(config)
    if isinstance(balance, ScalarisedReward):
        raise SystemExit(
            f"balance={config.balance.name} adds the rewards up before any gradient. Choose one that "
            "balances gradients, such as balance=marble."
        )
    sampler = build_sampler(config, load_prompts(config.data, "train"))
    optimizer = build_optimizer(config, policy)
    rollout = Rollout(policy, config.rollout, config.trainer.seed)
    with open_scorer(config.rewards, str(policy.device)) as scorer:
        parts = Parts(config, policy, rollout, scorer, balance, sampler, optimizer)
        for step in range(1, steps + 1):
            cosine = train_step(parts, step)
            print(f"step {step}: " + ", ".join(f"{n} {c:+.3f}" for n, c in zip(names, cosine, strict=True)))
    return policy


def main(arguments: list[str]) -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps (%(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="settings, as for `marble train`")
    options = parser.parse_args(arguments)
    train(options.steps, options.overrides)


if __name__ == "__main__":
    main(sys.argv[1:])
