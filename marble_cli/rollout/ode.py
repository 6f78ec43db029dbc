"""Deterministic ODE solvers over a velocity field: diffusers' schedulers as plain functions."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from marble_cli.config.schema import OdeSolver, RolloutTimes
from marble_cli.policy.families.guidance import bounded_norm

Velocity = Callable[[Tensor, Tensor], Tensor]  # (xt [B, C, H, W], t [B]) -> velocity [B, C, H, W]


def make_scheduler(
    config: Mapping[str, Any],
    solver: OdeSolver,
    steps: int,
    sequence: int,
    *,
    times: RolloutTimes = RolloutTimes.solver,
    even: bool = False,
) -> Any:
    """Return a flow scheduler with `steps` times set, from the model's own scheduler config.

    Args:
        config: as diffusers names its keys.
        solver: `euler` has the times of the model's own pipeline, `dpm2` its shift.
        steps: of the solver.
        sequence: image tokens, for models whose time shift depends on the resolution.
        times: `solver` spaces dpm2's times as diffusers' DPM-Solver does; `euler` takes those of the model's
            own pipeline, whatever the solver (the rollout published with arXiv 2509.16117).
        even: the pipeline shifts the times 1, 1 - 1/n, ..., 1/n instead of its scheduler's own.
    """
    euler = FlowMatchEulerDiscreteScheduler.from_config(config)
    shift, mu = euler.config.shift, None
    if euler.config.use_dynamic_shifting:
        low, high = euler.config.base_image_seq_len, euler.config.max_image_seq_len
        slope = (euler.config.max_shift - euler.config.base_shift) / (high - low)
        mu = euler.config.base_shift + slope * (sequence - low)
        shift = math.exp(mu) if euler.config.time_shift_type == "exponential" else mu
    euler.set_timesteps(steps, sigmas=numpy.linspace(1.0, 1 / steps, steps) if even else None, mu=mu)
    if solver is OdeSolver.dpm2:
        scheduler = DPMSolverMultistepScheduler(
            solver_order=2,
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=shift,
            final_sigmas_type="zero",
        )
        scheduler.set_timesteps(steps)
        if times is RolloutTimes.euler:
            scheduler.sigmas, scheduler.timesteps = euler.sigmas, euler.timesteps
        return scheduler
    return euler


def is_guided(scale: float) -> bool:
    """Whether `rollout.guidance_scale` asks for classifier-free guidance; 0 and 1 ask for none."""
    return scale > 1


def guided(
    positive: Velocity,
    negative: Velocity,
    combine: Callable[[Tensor, Tensor, float], Tensor],
    scale: float,
    normalization: float = 0.0,
    truncation: float = 1.0,
) -> Velocity:
    """Classifier-free guidance: with the prompt's velocity and the negative prompt's, in the manner of a family.

    Args:
        positive: the velocity with the prompt.
        negative: that with the negative prompt.
        combine: `guided` of the policy.
        scale: what the family's pipeline calls so.
        normalization: a guided sample is at most so many times as long as the unguided one; 0 for no bound.
        truncation: there is no guidance where 1 - t exceeds it.

    Source: Ho and Salimans, arXiv 2207.12598; the last two as in diffusers' `ZImagePipeline`.
    """

    def velocity(xt: Tensor, t: Tensor) -> Tensor:
        there = positive(xt, t)
        if truncation < 1 and bool((1 - t > truncation).any()):
            return there
        result = combine(there, negative(xt, t), scale)
        return bounded_norm(result, there, normalization) if normalization > 0 else result

    return velocity


def sampling_times(scheduler: Any) -> Tensor:
    """The times [steps] float32 in (0, 1], falling, at which the solver asks for a velocity."""
    sigmas: Tensor = scheduler.sigmas
    return sigmas[:-1].float()


def sample(velocity: Velocity, noise: Tensor, scheduler: Any) -> Tensor:
    """Integrate from `noise` [B, C, H, W] at t = 1 to x0 at t = 0."""
    scheduler.set_begin_index(0)
    scheduler._step_index = None
    if hasattr(scheduler, "model_outputs"):  # a multistep solver remembers the last trajectory
        scheduler.model_outputs = [None] * scheduler.config.solver_order
        scheduler.lower_order_nums = 0
    x = noise
    for timestep, t in zip(scheduler.timesteps, sampling_times(scheduler), strict=True):
        v = velocity(x, torch.full((len(x),), float(t), device=x.device))
        x = scheduler.step(v, timestep, x, return_dict=False)[0]
    return x
