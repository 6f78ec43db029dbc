"""Run by every rank of tests/distributed/test_sharding.py: compare a sharded policy with a whole one.

Arguments: the configuration's file, and the number of replicas.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from marble_cli.balance.registry import build
from marble_cli.config.compose import compose
from marble_cli.config.enums import Precision, Switch, Train
from marble_cli.distributed.layout import Layout, Replicated, Sharded
from marble_cli.distributed.ranks import Ranks
from marble_cli.distributed.shards import as_dtensor, full_on, local, local_shard
from marble_cli.objective.coefficients import reward_coefficients
from marble_cli.policy.load import load_policy, pick_device
from marble_cli.policy.pipeline import PipelinePolicy
from marble_cli.run.build import build_optimizer
from marble_cli.run.state import Progress, initial_progress, pack, unpack
from marble_cli.step.batches import TrainingSet, chunks
from marble_cli.step.direction import make_descent
from marble_cli.step.gradients import mixture_gradient, reward_gradients
from marble_cli.step.passes import Step
from marble_cli.step.reward_signal import read_signal

IMAGES = 4  # per rank: one group, in micro-batches of which the last is smaller
config = compose([], sys.argv[1])
replicas = int(sys.argv[2])


def randomise(policy: PipelinePolicy) -> None:
    """Move trained and behaviour weights away from the start, equally in every layout."""
    draw = torch.Generator().manual_seed(4)
    for adapter in ("trained", "behaviour"):
        for parameter in policy.parameters(adapter).values():
            noise = torch.randn(parameter.shape, generator=draw) * 0.02
            with torch.no_grad():
                local(parameter).add_(local_shard(noise.to(parameter.device), parameter))


def whole_rows(rows: Tensor, policy: PipelinePolicy) -> Tensor:
    """Gather rows [R, n] of shards into whole rows [R, P] on the main rank."""
    parameters = list(policy.parameters("trained").values())
    parts = rows.split([local(parameter).numel() for parameter in parameters], dim=1)
    columns = [
        torch.stack([full_on(as_dtensor(row, parameter), 0).flatten() for row in part])
        for part, parameter in zip(parts, parameters, strict=True)
    ]
    return torch.cat(columns, dim=1)


@contextmanager
def watched(ranks: Ranks) -> Iterator[list[tuple[int, ...]]]:
    """Record the shapes that are summed over ranks inside the block, in order."""
    shapes: list[tuple[int, ...]] = []

    def sum(tensor: Tensor) -> Tensor:
        shapes.append(tuple(tensor.shape))
        return Ranks.all_reduce(ranks, tensor)

    ranks.all_reduce = sum  # type: ignore[method-assign]
    yield shapes
    del ranks.all_reduce


def training_set(policy: PipelinePolicy, ranks: Ranks) -> TrainingSet:
    draw = torch.Generator().manual_seed(5)
    own = torch.arange(ranks.rank * IMAGES, (ranks.rank + 1) * IMAGES)
    x0 = torch.randn(ranks.world * IMAGES, *policy.latent_shape, generator=draw)[own].to(policy.device)
    times = (torch.rand(ranks.world * IMAGES, 1, generator=draw) * 0.8 + 0.1)[own]
    prompts = policy.encode(["a red cup", "two boats"])[own // 4 % 2]
    everywhere = torch.arange(ranks.world * IMAGES).view(ranks.world, IMAGES)
    return TrainingSet(x0, prompts, own, own, times, len(everywhere) * IMAGES, everywhere=everywhere)


def compare(reshard: bool, kind: str, ranks: Ranks, precision: str = "fp32") -> None:
    """Compare both layouts; in half precision adapters and frozen weights differ in type."""
    settings = replace(
        config.model,
        train=Train(kind),
        precision=Precision(precision),
        gradient_checkpointing=Switch.false if precision == "fp32" else Switch.true,
    )
    layouts: list[Layout] = [
        Replicated(ranks),
        Sharded(ranks, pick_device(config.model.device), replicas, reshard),
    ]
    policies = [load_policy(settings, 0, layout.place) for layout in layouts]
    for policy in policies:
        randomise(policy)
    names = list(config.rewards)
    draw = torch.Generator().manual_seed(6)
    n = ranks.world * IMAGES
    applicable = torch.rand(len(names), n, generator=draw) < 0.7
    rewards = torch.randn(len(names), n, generator=draw, dtype=torch.float64)
    signal = read_signal(rewards * applicable, applicable, torch.arange(n) // 4, config.algorithm)
    data = training_set(policies[0], ranks)
    with torch.no_grad():
        for adapter in ("behaviour", None, "trained"):
            at = data.x0, data.times[:, 0].to(data.x0), data.embeddings
            one, other = (policy.velocity(*at, adapter) for policy in policies)
            assert torch.equal(one, other), adapter
    first = next(iter(policies[1].parameters("trained").values()))
    assert isinstance(first, DTensor)
    assert local(first).numel() * ranks.world // replicas == first.numel()

    found, directions = [], []
    for policy, layout in zip(policies, layouts, strict=True):
        balance = build(config.balance, names, [1.0] * len(names))
        descent = make_descent(config, names, policy, balance, layout)
        step = Step(policy, layout, data, descent.objective, 1, lambda count: None)
        parts = chunks(data, descent.objective.micro_batch_size)
        made = reward_coefficients(signal.optimality, signal.applicable, shared_term=descent.shared_term)
        with watched(ranks) as shapes:
            rows = reward_gradients(step, parts, made.rewards, made.shared).rows
        # Losses and velocities are summed first, over gloo: NCCL would wait for a dead rank without end.
        assert shapes[0] == (len(rows) + 3,), shapes
        found.append(whole_rows(rows, policy))
        mixture = made.combined(torch.eye(len(names), dtype=torch.float64)[0])
        found.append(whole_rows(mixture_gradient(step, parts, mixture).rows, policy))
        directions.append(
            descent.direct(
                1, signal, data, Progress(0, initial_progress(policy).cache, {}, {}).cache, lambda n: None
            )
        )
        for parameter in policy.parameters("trained").values():
            assert parameter.grad is None
    if ranks.is_main:
        for one, other in ((found[0], found[2]), (found[1], found[3])):
            assert one.abs().max() > 0
            assert (one - other).abs().max() <= 1e-5 * one.abs().max(), (
                kind,
                (one - other).abs().max() / one.abs().max(),
            )
    for key, value in directions[0].metrics.items():
        if not key.endswith(("seconds", "gap")):
            assert abs(directions[1].metrics[key] - value) <= 1e-4 * (1 + abs(value)), key

    optimizers = [build_optimizer(config, policy) for policy in policies]
    states = []
    for policy, optimizer in zip(policies, optimizers, strict=True):
        draw = torch.Generator().manual_seed(7)
        for parameter in policy.parameters("trained").values():
            whole = torch.randn(parameter.shape, generator=draw).to(parameter.device)
            parameter.grad = as_dtensor(local_shard(whole, parameter).contiguous().flatten(), parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        states.append(pack(policy, optimizer, initial_progress(policy)))
    if ranks.is_main:
        same(states[0], states[1])
    # Load the state of one layout into the other.
    randomise(policies[1])
    state, weights, average = states[0]
    progress = unpack(policies[1], optimizers[1], state, weights, average)
    again = pack(policies[1], optimizers[1], progress)
    if ranks.is_main:
        same(states[0], again)


def same(one: tuple, other: tuple) -> None:  # type: ignore[type-arg]
    groups = [{**state.tensors, "trained": weights, "ema": ema} for state, weights, ema in (one, other)]
    assert groups[0].keys() == groups[1].keys()
    for name, tensors in groups[0].items():
        assert tensors.keys() == groups[1][name].keys()
        for key, tensor in tensors.items():
            assert torch.equal(tensor, groups[1][name][key]), (name, key)


with Ranks(config.model.device, always=True) as ranks:
    for reshard in (True, False):
        compare(reshard, "lora", ranks)  # one transformer, which passes with and without gradients share
    compare(True, "full", ranks)
    compare(True, "lora", ranks, "bf16")
    print("done", ranks.rank)
