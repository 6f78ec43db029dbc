"""Train on several rewards in one page: MARBLE without ranks, caches, checkpoints or recovery.

    python scripts/minimal_loop.py [--steps 3] [OVERRIDE ...]

Its stops have the numbers of docs/explanation/algorithm.md. `marble train` adds amortised steps, refreshes of
two backward passes instead of one per reward, several processes, images of several sizes, the moving average,
evaluations, checkpoints, rewards that may fail, and all keys of the KL term but `algorithm.kl_coef`. A test
holds the first step to the trainer's.
"""

import argparse
import sys

import torch
from torch import Tensor

from marble_cli.balance.constant import ScalarisedReward
from marble_cli.balance.gram import gram
from marble_cli.config.compose import compose
from marble_cli.config.enums import TrainingNoise
from marble_cli.config.schema import RunConfig
from marble_cli.data.prompts import load_prompts
from marble_cli.distributed.ranks import Ranks
from marble_cli.objective.advantages import advantages, optimality
from marble_cli.objective.coefficients import Coefficients, reward_coefficients
from marble_cli.objective.nft import kl_term, mixed_loss, nft_terms
from marble_cli.policy.base import Policy
from marble_cli.policy.load import load_policy
from marble_cli.policy.trainable.ema import behaviour_eta, blend
from marble_cli.rewards.scorer import open_scorer
from marble_cli.rollout.collect import Rollout
from marble_cli.run.build import build_balance, build_optimizer, build_sampler
from marble_cli.step.batches import TrainingSet, chunks, noised_batches, training_times


def train(steps: int, overrides: list[str]) -> Policy:
    """Train the embedded model, or the one that the overrides name, and print the cosines of every step.

    Raises:
        SystemExit: the balance is a sum of rewards, which has no gradient per reward.
    """
    # Compiled code allows one backward pass per forward pass, and each reward takes its own here.
    config = compose(["preset=tiny", "model.compile=false", *overrides])
    algorithm, trainer, size = config.algorithm, config.trainer, config.rollout.group_size
    balance = build_balance(config)
    if isinstance(balance, ScalarisedReward):
        raise SystemExit(f"balance={config.balance.name} has no gradient per reward. Choose balance=marble.")
    policy = load_policy(config.model, trainer.seed)
    trained, behaviour = (dict(policy.parameters(name)) for name in ("trained", "behaviour"))
    rollout = Rollout(policy, config.rollout, trainer.seed)
    sampler = build_sampler(config, load_prompts(config.data, "train"))
    optimizer = build_optimizer(config, policy)
    with open_scorer(config.rewards, str(policy.device)) as scorer:
        for step in range(1, steps + 1):
            # 1 Rollout: prompts, and several images of each, drawn by the behaviour policy.
            prompts = [prompt for prompt in sampler.step(step) for _ in range(size)]
            images = torch.arange(len(prompts))
            samples = rollout.collect(
                prompts, images.tolist(), scorer=scorer, adapter="behaviour", purpose="rollout", step=step,
                advance=lambda count: None,
            )  # fmt: skip

            # 2 Scores, or "not applicable". 3 Advantages over the other images of the same prompt.
            scores, groups = samples.scores(Ranks()), images // size
            advantage = advantages(scores.values, scores.applicable, groups, std=algorithm.advantage.std)
            r = optimality(advantage, algorithm.advantage.clip)

            # 4 Training samples: every image at some of the rollout's times, with fresh noise.
            draws = groups if algorithm.training_noise is TrainingNoise.group else images
            times = training_times(
                rollout.times(), trainer.timestep_fraction, trainer.times_per_image, draws.tolist(),
                trainer.seed, step, algorithm.training_times,
            )  # fmt: skip
            data = TrainingSet(samples.x0, samples.embeddings, images, draws, times, times.numel())

            # 5 Losses: K rewards and, last, what all of them share. 6 One gradient each.
            made = reward_coefficients(r, scores.applicable, shared_term=config.balance.shared_term)
            losses = made.rewards.plus(Coefficients(made.shared.p[None], made.shared.q[None]))
            gradients = loss_gradients(config, policy, data, losses, step)

            # 7 Gram matrix. 8 Balance: weights from that matrix alone. 9 Direction: the last is not weighed.
            balanced = balance(gram(gradients[:-1])).weights.float() @ gradients[:-1]
            direction = balanced + gradients[-1]

            # 10 Update: clipping, AdamW, behaviour policy.
            sizes = [parameter.numel() for parameter in trained.values()]
            for parameter, part in zip(trained.values(), direction.split(sizes), strict=True):
                parameter.grad = part.view_as(parameter)
            torch.nn.utils.clip_grad_norm_(trained.values(), config.optimizer.clip_norm)
            optimizer.step()
            blend(behaviour, trained, behaviour_eta(algorithm.behaviour, step))

            cosines = torch.cosine_similarity(balanced[None], gradients[:-1]).tolist()
            named = zip(config.rewards, cosines, strict=True)
            print(f"step {step}: " + ", ".join(f"{name} {cosine:+.3f}" for name, cosine in named))
    return policy


def loss_gradients(
    config: RunConfig, policy: Policy, data: TrainingSet, losses: Coefficients, step: int
) -> Tensor:
    """Return the gradients [R, P] of R losses; the last loss includes the KL term."""
    beta, clip = config.algorithm.beta, config.algorithm.advantage.clip
    parameters = list(policy.parameters("trained").values())
    rows = torch.zeros(len(losses.p), sum(parameter.numel() for parameter in parameters))
    micro_batches = chunks(data, config.trainer.micro_batch_size)
    for batch in noised_batches(data, micro_batches, config.trainer.seed, step):
        inputs = batch.xt, batch.t, batch.embeddings
        with torch.no_grad():
            v_old, v_ref = policy.velocity(*inputs, "behaviour"), policy.velocity(*inputs, None)
        v = policy.velocity(*inputs, "trained")
        terms = nft_terms(batch.x0, batch.xt, batch.t, v, v_old, beta=beta)
        each = [
            mixed_loss(terms, p, q, clip=clip, beta=beta, count=data.samples)
            for p, q in zip(*losses.of(batch.indices), strict=True)
        ]
        each[-1] = each[-1] + config.algorithm.kl_coef * kl_term(v, v_ref).sum() / data.samples
        for row, loss in zip(rows, each, strict=True):
            row += torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])
    return rows


def main(arguments: list[str]) -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description="Train on several rewards in one page.")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps (%(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="settings, as for `marble train`")
    options = parser.parse_args(arguments)
    train(options.steps, options.overrides)


if __name__ == "__main__":
    main(sys.argv[1:])
