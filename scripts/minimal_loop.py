"""Train on several rewards in one page: MARBLE without ranks, caches, checkpoints or recovery.

    python scripts/minimal_loop.py [--steps 3] [OVERRIDE ...]

The order is that of docs/explanation/algorithm.md. Left out of what `marble train` does: several processes, the amortised step and
the cheap refresh (here every reward takes a backward pass of its own at every step), evaluations, checkpoints,
failing rewards. A test holds the first step to the trainer's.
"""

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor

from marble_cli.balance.base import Balance
from marble_cli.balance.constant import ScalarisedReward
from marble_cli.balance.gram import gram
from marble_cli.config.compose import compose
from marble_cli.config.schema import RunConfig, TrainingNoise
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
from marble_cli.rollout.collect import Rollout, training_rollout
from marble_cli.run.build import build_balance, build_optimizer, build_sampler
from marble_cli.step.batches import NoisedBatch, TrainingSet, chunks, noised_batches, training_times


def train_step(
    config: RunConfig, policy: Policy, rollout: Rollout, scorer: Scorer, balance: Balance,
    sampler: PromptSampler, optimizer: torch.optim.Optimizer, step: int,
) -> Tensor:  # fmt: skip
    """Take one optimizer step; returns the cosine [K] of the balanced direction with every reward's gradient."""
    algorithm, settings, size = config.algorithm, config.trainer, config.rollout.group_size

    # 1 Rollout: G prompts, M images each, from the behaviour policy.
    prompts = [prompt for prompt in sampler.step(step) for _ in range(size)]
    images = torch.arange(len(prompts))
    samples = rollout.collect(
        prompts, images.tolist(), scorer=scorer, adapter="behaviour", purpose="rollout", step=step, advance=lambda n: None
    )  # fmt: skip

    # 2 Rewards, and 3 advantages: one estimator per reward, against the other images of the same prompt.
    scores = samples.scores(Ranks())
    advantage = advantages(
        scores.values.nan_to_num(), scores.applicable, images // size, std=algorithm.advantage.std.value
    )
    r = optimality(advantage, algorithm.advantage.clip)

    # 4 Loss: affine in r, so a reward is a row of coefficients of P and N.
    coefficients = reward_coefficients(r, scores.applicable, shared_term=config.balance.shared_term)
    draws = images // size if algorithm.training_noise is TrainingNoise.group else images
    times = training_times(
        rollout.times(), settings.timestep_fraction, settings.times_per_image, draws.tolist(), settings.seed, step,
        algorithm.training_times,
    )  # fmt: skip
    data = TrainingSet(samples.x0, samples.embeddings, images, draws, times, times.numel())
    parameters = list(policy.parameters("trained").values())
    rewards, shared = coefficients.rewards, coefficients.shared
    rows = torch.zeros(len(config.rewards) + 1, sum(parameter.numel() for parameter in parameters))
    for batch in noised_batches(data, chunks(data, settings.micro_batch_size), settings.seed, step):
        losses = list(
            batch_losses(config, policy, batch, data.samples, [*zip(rewards.p, rewards.q, strict=True), (shared.p, shared.q)])
        )  # fmt: skip
        for row, loss in zip(rows, losses, strict=True):
            parts = torch.autograd.grad(loss, parameters, retain_graph=loss is not losses[-1])
            row += torch.cat([part.flatten() for part in parts])

    # 5 Balance: only the Gram matrix of the rewards' gradients enters. The last row is added once, as it is.
    matrix = gram(rows[:-1])
    weights = balance(matrix).weights
    balanced = weights.float() @ rows[:-1]
    gradient = balanced + rows[-1]

    # 7 Update: clip, AdamW, behaviour policy. (6, the amortised step, is left out.)
    gradient = gradient * min(1.0, config.optimizer.clip_norm / (gradient.norm().item() + 1e-6))
    for parameter, part in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)
    optimizer.step()
    trained, behaviour = dict(policy.parameters("trained")), dict(policy.parameters("behaviour"))
    blend(behaviour, trained, behaviour_eta(algorithm.behaviour, step))  # type: ignore[arg-type]
    return torch.cosine_similarity(balanced[None], rows[:-1])


def batch_losses(
    config: RunConfig, policy: Policy, batch: NoisedBatch, samples: int, coefficients: list[tuple[Tensor, Tensor]]
) -> Iterator[Tensor]:  # fmt: skip
    """Yield a micro-batch's part of every loss of the step; the KL term belongs to the last."""
    algorithm = config.algorithm
    at = (batch.xt, batch.t, batch.embeddings)
    with torch.no_grad():
        v_old, v_ref = policy.velocity(*at, "behaviour"), policy.velocity(*at, None)
    v = policy.velocity(*at, "trained")
    terms = nft_terms(batch.x0, batch.xt, batch.t, v, v_old, beta=algorithm.beta)
    kl = algorithm.kl_coef * kl_term(v, v_ref).sum() / samples
    for k, (p, q) in enumerate(coefficients):
        loss = mixed_loss(
            terms, p[batch.indices], q[batch.indices],
            clip=algorithm.advantage.clip, beta=algorithm.beta, count=samples,
        )  # fmt: skip
        yield loss + kl if k == len(coefficients) - 1 else loss


def main(steps: int, overrides: list[str]) -> Policy:
    """Train the embedded model, or what the overrides say, and print the cosines of every step."""
    config = compose(["preset=tiny", *overrides])
    policy = load_policy(config.model, config.trainer.seed)
    names = list(config.rewards)
    balance = build_balance(config)
    if isinstance(balance, ScalarisedReward):
        raise SystemExit(f"balance={config.balance.name} mixes rewards before there are gradients to balance")
    sampler = build_sampler(config, load_prompts(config.data, "train"))
    optimizer = build_optimizer(config, policy)
    rollout = training_rollout(config, policy)
    with open_scorer(config.rewards, str(policy.device)) as scorer:
        for step in range(1, steps + 1):
            cosine = train_step(config, policy, rollout, scorer, balance, sampler, optimizer, step)
            print(f"step {step}: " + ", ".join(f"{n} {c:+.3f}" for n, c in zip(names, cosine, strict=True)))
    return policy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="any override of marble train")
    options = parser.parse_args()
    main(options.steps, options.overrides)
