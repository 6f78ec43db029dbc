"""ODE solvers against paths whose end is known."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from torch import Tensor

from marble_cli.config.enums import OdeSolver, RolloutTimes
from marble_cli.rollout.ode import make_scheduler, sample, sampling_times

NOISE = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
TARGET = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))


def scheduler(solver: OdeSolver, steps: int, **config: Any) -> Any:
    return make_scheduler({"shift": 1.0, **config}, solver, steps, 256)


def growth(xt: Tensor, t: Tensor) -> Tensor:
    """dx/dt = 2 x cos(3 t): x(0) = x(s) exp(-2/3 sin 3 s), and the path is bent."""
    return 2 * xt * torch.cos(3 * t)[:, None, None, None]


def error(solver: OdeSolver, steps: int) -> float:
    chosen = scheduler(solver, steps)
    start = float(sampling_times(chosen)[0])
    exact = NOISE * math.exp(-2 / 3 * math.sin(3 * start))
    return float((sample(growth, NOISE, chosen) - exact).abs().max())


def test_error_of_the_second_order_solver_falls_quadratically() -> None:
    euler = [error(OdeSolver.euler, steps) for steps in (16, 32)]
    dpm2 = [error(OdeSolver.dpm2, steps) for steps in (16, 32)]
    assert 1.8 < euler[0] / euler[1] < 2.2
    assert dpm2[0] / dpm2[1] > 3.0
    assert dpm2[0] < euler[0] / 2
    assert dpm2[1] < euler[1] / 5


@pytest.mark.parametrize("solver", list(OdeSolver))
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_straight_paths_are_exact(solver: OdeSolver, steps: int, shift: float) -> None:
    chosen = scheduler(solver, steps, shift=shift)
    start = sampling_times(chosen)[0]
    constant = sample(lambda xt, t: NOISE - TARGET, NOISE, chosen)
    torch.testing.assert_close(constant, NOISE - start * (NOISE - TARGET), rtol=0, atol=1e-5)
    towards = sample(lambda xt, t: (xt - TARGET) / t[:, None, None, None], NOISE, chosen)
    torch.testing.assert_close(towards, TARGET, rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", list(OdeSolver))
@pytest.mark.parametrize("steps", [1, 3, 25])
@pytest.mark.parametrize("shift", [{"shift": 1.0}, {"shift": 3.0}, {"shift_terminal": 0.02}])
def test_times_fall_in_the_unit_interval(solver: OdeSolver, steps: int, shift: dict[str, float]) -> None:
    chosen = scheduler(solver, steps, **shift)
    times = sampling_times(chosen)
    seen: list[Tensor] = []

    def velocity(xt: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return torch.zeros_like(xt)

    sample(velocity, NOISE, chosen)
    assert times.dtype == torch.float32
    assert times.shape == (steps,)
    assert (times > 0).all()
    assert (times <= 1).all()
    assert (times.diff() < 0).all()
    assert times[0] > 0.99
    assert torch.equal(torch.stack(seen), times[:, None].expand(-1, 2))


def test_shift_moves_times_towards_noise() -> None:
    """Times t become s t / (1 + (s - 1) t); Euler's are diffusers', which shifts the smallest time twice."""
    plain, shifted = (sampling_times(scheduler(OdeSolver.dpm2, 10, shift=s)) for s in (1.0, 3.0))
    torch.testing.assert_close(shifted, 3 * plain / (1 + 2 * plain))
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(10)
    assert torch.equal(sampling_times(scheduler(OdeSolver.euler, 10, shift=3.0)), theirs.sigmas[:-1])


def test_dynamic_shift_equals_the_pipelines() -> None:
    config = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    config |= {"base_image_seq_len": 256, "max_image_seq_len": 4096}
    for tokens in (256, 1024, 4096):
        theirs = FlowMatchEulerDiscreteScheduler(**config)
        theirs.set_timesteps(
            9,
            mu=calculate_shift(tokens, base_seq_len=256, max_seq_len=4096, base_shift=0.5, max_shift=1.15),
        )
        ours = make_scheduler(config, OdeSolver.euler, 9, tokens)
        torch.testing.assert_close(sampling_times(ours), theirs.sigmas[:-1])


def second_order(times: list[float], x: Tensor) -> Tensor:
    """Integrate `growth` with DPM-Solver++(2M) in float64, written for x / t and alpha / t.

    With alpha = 1 - t, x / t grows by the change of alpha / t times the clean latent, extrapolated half a
    step in log(alpha / t); the first and the last step do not extrapolate.

    Source: arXiv 2211.01095, algorithm 2.
    """

    def log_ratio(t: float) -> float:
        return math.log((1 - t) / t) if t < 1 else -math.inf

    x, before, spacing = x.double(), None, math.inf
    for t, after in pairwise(times):
        clean = x - t * growth(x, torch.full((len(x),), t, dtype=torch.float64))
        ahead = log_ratio(after) - log_ratio(t)
        slope = 0.0 if before is None or math.isinf(spacing) else ahead / spacing / 2
        step = clean if before is None else clean + slope * (clean - before)
        x = after * (x / t + ((1 - after) / after - (1 - t) / t) * step)
        before, spacing = clean, ahead
    return x - times[-1] * growth(x, torch.full((len(x),), times[-1], dtype=torch.float64))


def euler_times(steps: int, shift: float) -> list[float]:
    """Compute the times of a pipeline's Euler scheduler with 1,000 times: its lower end is shifted twice."""

    def shifted(u: float) -> float:
        return shift * u / (1 + (shift - 1) * u)

    low = shifted(1 / 1000)
    return [shifted(1 + (low - 1) * place / max(steps - 1, 1)) for place in range(steps)]


def test_times_of_the_published_rollout_equal_the_pipelines() -> None:
    """Of Stable Diffusion 3.5: shift 3, 25 steps."""
    pair = [
        sampling_times(make_scheduler({"shift": 3.0}, OdeSolver.dpm2, 25, 1024, times=times))
        for times in RolloutTimes
    ]
    for times, expected in zip(
        pair, ([0.9997, 0.986, 0.207, 0.111], [1.0, 0.986, 0.123, 0.0089]), strict=True
    ):
        assert times[[0, 1, -2, -1]].tolist() == pytest.approx(expected, abs=6e-4)
    assert pair[1].tolist() == pytest.approx(euler_times(25, 3.0), abs=1e-6)
    assert (pair[0] - pair[1]).abs().max() == pytest.approx(0.102, abs=1e-3)


@pytest.mark.parametrize("times", list(RolloutTimes))
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 14, 15, 25])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_second_order_updates_equal_the_papers(times: RolloutTimes, steps: int, shift: float) -> None:
    chosen = make_scheduler({"shift": shift}, OdeSolver.dpm2, steps, 256, times=times)
    where = euler_times(steps, shift) if times is RolloutTimes.euler else sampling_times(chosen).tolist()
    found = sample(growth, NOISE, chosen)
    torch.testing.assert_close(found.double(), second_order(where, NOISE), rtol=0, atol=2e-5)


@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_euler_times_are_the_same_for_both_solvers_in_every_family(even: bool, dynamic: bool) -> None:
    config = {"shift": 3.0, "use_dynamic_shifting": dynamic, "base_shift": 0.5, "max_shift": 1.15}
    config |= {"base_image_seq_len": 256, "max_image_seq_len": 4096}
    euler, dpm2 = (
        make_scheduler(config, solver, 9, 1024, times=RolloutTimes.euler, even=even) for solver in OdeSolver
    )
    assert torch.equal(sampling_times(dpm2), sampling_times(euler))
    expected = second_order([float(t) for t in sampling_times(euler)], NOISE)
    torch.testing.assert_close(sample(growth, NOISE, dpm2).double(), expected, rtol=0, atol=1e-4)
    assert not torch.allclose(sample(growth, NOISE, euler), sample(growth, NOISE, dpm2), atol=1e-2)


@pytest.mark.parametrize("solver", list(OdeSolver))
def test_reused_scheduler_forgets_the_last_trajectory(solver: OdeSolver) -> None:
    used, fresh = scheduler(solver, 6), scheduler(solver, 6)
    sample(growth, TARGET, used)
    assert torch.equal(sample(growth, NOISE, used), sample(growth, NOISE, fresh))


@pytest.mark.parametrize("solver", list(OdeSolver))
def test_samples_do_not_depend_on_one_another(solver: OdeSolver) -> None:
    both = sample(growth, NOISE, scheduler(solver, 6))
    apart = torch.cat([sample(growth, row[None], scheduler(solver, 6)) for row in NOISE])
    assert torch.equal(both, apart)
