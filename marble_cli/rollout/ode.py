"""Integrate a velocity field with deterministic ODE solvers: diffusers' schedulers as plain functions."""

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch import Tensor

from marble_cli.config.enums import OdeSolver, RolloutTimes
from marble_cli.policy.diffusers_types import Scheduler
from marble_cli.policy.families.variance_preserving import euler_scheduler, flow_times
from marble_cli.rollout.guidance import Velocity

# What networks predict in variance-preserving models, by the name in their schedulers' configurations.
VARIANCE_PRESERVING = ("epsilon", "v_prediction")
SHIFT_BY_STEPS = "shift_by_steps"  # a key of FLUX.2's: its pipelines' shift depends on the steps, too


def make_scheduler(
    config: Mapping[str, Any],
    solver: OdeSolver,
    steps: int,
    sequence: int,
    *,
    times: RolloutTimes = RolloutTimes.solver,
    even: bool = False,
) -> Scheduler:
    """Make a flow scheduler with its times set, from the configuration of the model's own scheduler.

    Args:
        config: the model's scheduler configuration, by diffusers' keys.
        solver: `euler` uses the times of the model's own pipeline; `dpm2` uses the pipeline's shift.
        steps: the number of solver steps.
        sequence: image tokens, for models whose time shift depends on the resolution.
        times: `solver` spaces dpm2's times as diffusers' DPM-Solver does; `euler` uses the times of the
            model's own pipeline for both solvers (the rollout published with arXiv 2509.16117).
        even: whether the pipeline shifts the times 1, 1 - 1/n, ..., 1/n instead of its scheduler's own.
    """
    if config.get("prediction_type") in VARIANCE_PRESERVING:
        return _scheduler_of_noise_levels(config, solver, steps, times)
    known = {key: value for key, value in config.items() if key != SHIFT_BY_STEPS}
    if steps == 1:  # the only time is 1, and cannot be stretched to end at another
        known["shift_terminal"] = None
    euler: Any = FlowMatchEulerDiscreteScheduler.from_config(known)
    shift, mu = euler.config.shift, None
    if euler.config.use_dynamic_shifting:
        low, high = euler.config.base_image_seq_len, euler.config.max_image_seq_len
        slope = (euler.config.max_shift - euler.config.base_shift) / (high - low)
        mu = euler.config.base_shift + slope * (sequence - low)
        if config.get(SHIFT_BY_STEPS):
            mu = compute_empirical_mu(sequence, steps)
        shift = math.exp(mu) if euler.config.time_shift_type == "exponential" else mu
    euler.set_timesteps(steps, sigmas=numpy.linspace(1.0, 1 / steps, steps) if even else None, mu=mu)
    chosen = euler
    if solver is OdeSolver.dpm2:
        chosen = _dpm2(steps, shift)
        if times is RolloutTimes.euler:
            chosen.sigmas, chosen.timesteps = euler.sigmas, euler.timesteps
    chosen.init_noise_sigma = 1.0
    return cast(Scheduler, chosen)


def _dpm2(steps: int, shift: float = 1.0) -> Any:
    """Make DPM-Solver++ (2M) for flow models."""
    dpm2: Any = DPMSolverMultistepScheduler(
        solver_order=2,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
        final_sigmas_type="zero",
    )
    dpm2.set_timesteps(steps)
    return dpm2


def _scheduler_of_noise_levels(
    config: Mapping[str, Any], solver: OdeSolver, steps: int, times: RolloutTimes
) -> Scheduler:
    """Make a flow scheduler that takes the steps of diffusers' solver of a variance-preserving model.

    Both solvers compute the same in the coordinates of `policy.families.variance_preserving`: Euler keeps the
    predictions of x0 and noise, and DPM-Solver++ depends on x0 and log(sigma / alpha) alone.
    """
    own: Any = euler_scheduler(config)
    if solver is OdeSolver.dpm2 and times is RolloutTimes.solver:
        own = DPMSolverMultistepScheduler.from_config(config, final_sigmas_type="zero")
    own.set_timesteps(steps)
    chosen = _dpm2(steps) if solver is OdeSolver.dpm2 else FlowMatchEulerDiscreteScheduler()
    chosen.sigmas = flow_times(own.sigmas)
    chosen.timesteps = 1000 * chosen.sigmas[:-1]
    s, start = float(own.sigmas[0]), float(own.init_noise_sigma)
    if not isinstance(own, EulerDiscreteScheduler):
        start *= math.hypot(1, s)  # diffusers' Euler scales latents by 1 / alpha, and its DPM-Solver does not
    chosen.init_noise_sigma = start / (1 + s)
    return cast(Scheduler, chosen)


def sampling_times(scheduler: Scheduler) -> Tensor:
    """Return the times [steps] float32 in (0, 1], falling, at which the solver evaluates the velocity."""
    return scheduler.sigmas[:-1].float()


def sample(velocity: Velocity, noise: Tensor, scheduler: Scheduler) -> Tensor:
    """Integrate from `noise` [B, C, H, W] at the first time to x0 at t = 0."""
    _reset(scheduler)
    x = noise * scheduler.init_noise_sigma
    for timestep, t in zip(scheduler.timesteps, sampling_times(scheduler), strict=True):
        v = velocity(x, torch.full((len(x),), float(t), device=x.device))
        x = scheduler.step(v, timestep, x, return_dict=False)[0]
    return x


def _reset(scheduler: Any) -> None:
    """Make a scheduler forget its last trajectory; diffusers offers this only by setting new times."""
    scheduler.set_begin_index(0)
    scheduler._step_index = None
    if hasattr(scheduler, "model_outputs"):  # of a multistep solver
        scheduler.model_outputs = [None] * scheduler.config.solver_order
        scheduler.lower_order_nums = 0
