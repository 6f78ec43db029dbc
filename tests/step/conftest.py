"""A policy in float64 and a step with all that makes gradients hard: masks, clipping, uneven groups."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from marble_cli.balance.base import Balance
from marble_cli.balance.registry import build_for
from marble_cli.config.enums import Train
from marble_cli.config.schema import ModelConfig, RunConfig
from marble_cli.distributed.layout import Replicated
from marble_cli.distributed.ranks import Ranks
from marble_cli.policy.base import Adapter, PromptEmbeddings
from marble_cli.policy.families.sd3 import SD3
from marble_cli.policy.load import load_policy
from marble_cli.policy.pipeline import PipelinePolicy
from marble_cli.policy.trainable.blocks import repeated_blocks
from marble_cli.policy.trainable.full import FullWeights
from marble_cli.seeds import noise
from marble_cli.step.batches import TrainingSet
from marble_cli.step.direction import Descent, make_descent
from marble_cli.step.passes import Objective, Step
from marble_cli.step.reward_signal import Signal, read_signal
from tests.step.directions import NAMES, STEP, DescentMaker

SEED = 0
CLIP, BETA = 0.8, 0.3


class DoublePolicy(PipelinePolicy):
    """The same policy in float64; only the cast of the velocity to float32 is left out.

    Velocities without a gradient, of which most tests take the same, are computed once.
    """

    def velocity(self, xt: Tensor, t: Tensor, embeddings: PromptEmbeddings, adapter: Adapter) -> Tensor:
        self.trainable.activate(adapter)
        if torch.is_grad_enabled() or not is_plain(self.network):
            return self.family.velocity(xt, t, embeddings)
        key = hashlib.sha256(repr(adapter).encode())
        for tensor in (xt, t, *embeddings.tensors.values(), *self.network.parameters()):
            key.update(repr((tensor.shape, tensor.dtype)).encode())
            key.update(tensor.cpu().contiguous().numpy())
        known: dict[bytes, Tensor] = self.__dict__.setdefault("_velocities", {})
        if key.digest() not in known:
            known[key.digest()] = self.family.velocity(xt, t, embeddings)
        return known[key.digest()].clone()


def is_plain(network: nn.Module) -> bool:
    """Whether nothing watches operations, and no test has changed how a block is called."""
    blocks = repeated_blocks(network)
    changed = any("forward" in block.__dict__ or block._compiled_call_impl for block in blocks)
    return not changed and _get_current_dispatch_mode() is None


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the policy computes; tests/gpu has another."""
    return torch.device("cpu")


@pytest.fixture(scope="session", params=list(Train), ids=lambda train: train.value)
def double_policy(
    request: pytest.FixtureRequest,
    device: torch.device,
    model: ModelConfig,
    transformer_maker: Callable[..., Any],
    randomise: Callable[..., None],
) -> DoublePolicy:
    """Trained and behaviour weights differ, and both from the base.

    They are two adapters, or two whole transformers.
    """
    model = replace(model, train=request.param)
    pipeline = load_policy(model, seed=0).pipeline
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        pipeline.transformer = transformer_maker(qk_norm=None)
    policy = DoublePolicy(pipeline, SD3(pipeline, model), model, device, seed=0)
    policy.network.double()
    if isinstance(policy.trainable, FullWeights):
        for adapter in ("trained", "behaviour"):
            policy.trainable.network(adapter).double()  # type: ignore[arg-type]
    randomise(policy)
    return policy


@dataclass(frozen=True)
class Case:
    """A step of 12 images with two training times each, and what the five rewards say of it."""

    data: TrainingSet
    signal: Signal
    objective: Objective

    def step(self, policy: DoublePolicy) -> Step:
        return Step(policy, Replicated(Ranks()), self.data, self.objective, STEP, lambda count: None)

    def definition(self, policy: DoublePolicy) -> tuple[Tensor, Tensor, Tensor]:
        """Return P_i and N_i averaged over the times, [n], and the KL term, all differentiable, on the CPU.

        They follow docs/explanation/algorithm.md image by image.
        """
        data, positive, negative, distance = self.data, [], [], []
        for i in range(len(data.x0)):
            terms = []
            for column in range(data.times.shape[1]):
                x0 = data.x0[i][None]
                t = data.times[i, column].to(x0)
                eps = noise(SEED, f"train{column}", STEP, [40 + i // 2], tuple(x0.shape[1:])).to(x0)
                xt = (1 - t) * x0 + t * eps
                prompt = data.embeddings[i : i + 1]
                with torch.no_grad():
                    v_ref = policy.velocity(xt, t[None], prompt, None)
                    v_old = policy.velocity(xt, t[None], prompt, "behaviour")
                v = policy.velocity(xt, t[None], prompt, "trained")
                plus = xt - t * ((1 - BETA) * v_old + BETA * v) - x0
                minus = xt - t * ((1 + BETA) * v_old - BETA * v) - x0
                terms.append(
                    [
                        plus.square().mean() / max(plus.detach().abs().mean().item(), 1e-5),
                        minus.square().mean() / max(minus.detach().abs().mean().item(), 1e-5),
                        (v - v_ref).square().mean(),
                    ]
                )
            means = [sum(part) / len(terms) for part in zip(*terms, strict=True)]
            for total, mean in zip((positive, negative, distance), means, strict=True):
                total.append(mean)
        return torch.stack(positive).cpu(), torch.stack(negative).cpu(), torch.stack(distance).mean().cpu()


def flat(loss: Tensor, policy: DoublePolicy) -> Tensor:
    """Gradient of `loss` in the trained weights, [P] on the CPU; the graph is kept."""
    parameters = list(policy.parameters("trained").values())
    parts = torch.autograd.grad(loss, parameters, retain_graph=True)
    return torch.cat([part.flatten() for part in parts]).cpu()


@dataclass(frozen=True)
class Reference:
    """Gradients of the definition, by plain autograd over the whole step at once; each is taken once."""

    positive: Tensor
    negative: Tensor
    kl: Tensor
    policy: DoublePolicy
    taken: dict[tuple[bytes, ...], Tensor] = field(default_factory=dict)

    def loss(self, optimality: Tensor, mask: Tensor) -> Tensor:
        """L of one reward: the mean over its applicable images of (r P + (1 - r) N) A_max / beta."""
        terms = optimality * self.positive + (1 - optimality) * self.negative
        return terms[mask].sum() / max(int(mask.sum()), 1) * CLIP / BETA

    def gradient(self, optimality: Tensor, mask: Tensor) -> Tensor:
        return self._once(lambda: self.loss(optimality, mask), optimality, mask)

    def shared(self, mask: Tensor) -> Tensor:
        """c: the gradient of the mean of (P + N) / 2 over the images of `mask`."""
        return self._once(lambda: (self.positive + self.negative)[mask].mean() / 2 * CLIP / BETA, mask)

    def _once(self, loss: Callable[[], Tensor], *of: Tensor) -> Tensor:
        key = tuple(tensor.numpy().tobytes() for tensor in of)
        if key not in self.taken:
            self.taken[key] = flat(loss(), self.policy)
        return self.taken[key].clone()


@pytest.fixture(scope="session")
def case(double_policy: DoublePolicy, run_config: Callable[..., RunConfig]) -> Case:
    draw = torch.Generator().manual_seed(3)
    groups = torch.tensor([0] * 3 + [1] * 5 + [2] * 4)
    rewards = torch.randn(5, 12, generator=draw, dtype=torch.float64) * torch.tensor([[1.0, 9, 0.1, 1, 1]]).T
    applicable = torch.rand(5, 12, generator=draw) < torch.tensor([[1.0, 0.7, 0.8, 0.5, 0.0]]).T
    applicable[2, groups == 0] = False
    config = run_config(f"algorithm.advantage.clip={CLIP}")
    signal = read_signal(torch.where(applicable, rewards, torch.nan), applicable, groups, config.algorithm)
    x0 = torch.randn(12, *double_policy.latent_shape, generator=draw, dtype=torch.float64)
    encoded = double_policy.encode(["a red cup", "two boats", 'a sign that says "3"'])[groups]
    embeddings = PromptEmbeddings({name: tensor.double() for name, tensor in encoded.tensors.items()})
    times = torch.rand(12, 2, generator=draw) * 0.8 + 0.1
    # Neighbours share noise, also across micro-batches.
    draws = torch.tensor([40 + i // 2 for i in range(12)])
    data = TrainingSet(x0.to(double_policy.device), embeddings, torch.arange(12), draws, times, samples=24)
    return Case(data, signal, Objective(BETA, CLIP, kl_coef=0.7, seed=SEED, micro_batch_size=5))


@pytest.fixture(scope="session")
def reference(case: Case, double_policy: DoublePolicy) -> Reference:
    positive, negative, distance = case.definition(double_policy)
    return Reference(
        positive, negative, flat(case.objective.kl_coef * distance, double_policy), double_policy
    )


@pytest.fixture(scope="session")
def descent(double_policy: DoublePolicy, case: Case, run_config: Callable[..., RunConfig]) -> DescentMaker:
    """A function of further overrides that makes the descent of the five rewards, on one rank."""

    def make(*overrides: str, balance: Balance | None = None) -> Descent:
        config = run_config(
            *(f"+rewards.{name}={{plugin: colorfulness}}" for name in NAMES[2:]),
            f"algorithm.advantage.clip={CLIP}",
            f"algorithm.beta={BETA}",
            "algorithm.kl_coef=0.7",
            f"trainer.seed={SEED}",
            "trainer.micro_batch_size=5",
            *overrides,
        )
        chosen = balance or build_for(config.balance, config.rewards)
        made = make_descent(config, NAMES, double_policy, chosen, Replicated(Ranks()))
        assert replace(made.objective, micro_batch_size=5, kl_every=1) == case.objective
        return made

    return make
