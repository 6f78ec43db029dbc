"""Add up the passes of a run, by what one costs (FLOP per image, or copied bytes), and their time."""

import time
from collections.abc import Sequence

import torch

from marble_cli.config.aspects import by_aspect
from marble_cli.config.counts import geometry, images_per_process, micro_batches, trained_images
from marble_cli.config.enums import BalanceMode, KlReference, SharedTerm, Switch, Train
from marble_cli.config.schema import RunConfig
from marble_cli.policy.model_size import ModelSize

# Bytes per second from locked memory to a GPU by 16 lanes of PCIe 4.0; half by PCIe 3.0, twice by PCIe 5.0.
COPY_SPEED = 25e9
# Share of the speed of a large matrix product that a run of `preset=tiny` reached on two CPU cores.
UTILISATION = 0.7


def refreshed(config: RunConfig, parts: int) -> int:
    """Return how many of a process's micro-batches per step, `parts`, compute each reward's gradient."""
    return max(1, round(config.balance.refresh_fraction * parts))


def add_passes(
    config: RunConfig, images: int, samples: int, parts: int, forward: float, backward: float
) -> float:
    """Return what all passes of a run cost, without evaluations.

    A training sample takes a forward pass of the trained and one of the behaviour weights, and a share of the
    samples, by `algorithm.kl_every`, one of the frozen model, or two with `algorithm.kl_reference=guided`. A
    refresh takes one or two further backward passes, with full weights one per reward.

    Args:
        config: of the run.
        images: of a step, or batches of them.
        samples: of a step, or micro-batches of them.
        parts: micro-batches of a step.
        forward: cost of a forward pass of one of these.
        backward: cost of a backward pass.
    """
    balance, algorithm = config.balance, config.algorithm
    references = 2 if algorithm.kl_reference is KlReference.guided else 1
    frozen = references / min(algorithm.kl_every, parts) if algorithm.kl_coef else 0.0
    plain = samples * ((2 + frozen) * forward + backward)
    if balance.mode is BalanceMode.output_space:
        further = float(backward)
    else:
        passes = 1 if balance.shared_term is SharedTerm.outside else 2
        if config.model.train is Train.full:
            passes = len(by_aspect(config.rewards))
        further = refreshed(config, parts) / parts * backward * passes
    velocities = 2 if config.rollout.guidance_scale > 1 else 1
    rollouts = images * config.rollout.steps * velocities * forward
    return config.trainer.steps * (rollouts + plain) + geometry(config).refresh_steps * samples * further


def copying_seconds(
    config: RunConfig, offloaded: int, together: int = 1, groups: Sequence[int] = ()
) -> float:
    """Estimate the seconds that the whole run's copies of `offloaded` bytes take on each process.

    Every pass over a batch copies all blocks once; a backward pass computes them again, so it does, too.
    """
    each, parts = images_per_process(config, together, groups), micro_batches(config, together, groups)
    batches = sum(-(-images // config.rollout.batch_size) for images in each)
    return add_passes(config, batches, parts, parts, offloaded, offloaded) / COPY_SPEED


def seconds(
    config: RunConfig, size: ModelSize, speed: float, together: int = 1, groups: Sequence[int] = ()
) -> float:
    """Estimate the seconds of the whole run at `speed` FLOP/s per process, without decoding and rewards.

    A process draws and trains on its share of the images, padding included; `together` are the neighbouring
    images that stay on one process, and `groups` a step's groups of each size. Forward and backward passes
    were counted (`policy.cost`); gradient checkpointing computes a forward pass again in each backward pass.
    """
    backward = size.cost.backward
    if config.model.gradient_checkpointing is Switch.true:
        backward += size.cost.forward
    images = sum(images_per_process(config, together, groups))
    parts = micro_batches(config, together, groups)
    samples = trained_images(config, images) * geometry(config).times
    return add_passes(config, images, samples, parts, size.cost.forward, backward) / speed


def matmul_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the FLOP/s that a transformer may reach on `device` in `dtype`, by a quick matrix product."""
    side = 1024 if device.type == "cpu" else 8192
    a = torch.randn(side, side, device=device, dtype=dtype)
    float((a @ a).sum())
    began = time.perf_counter()
    float((a @ a).sum())
    return UTILISATION * 2 * side**3 / (time.perf_counter() - began)
