"""Models that predict noise or v are flow models in other coordinates, by closed forms in float64."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from torch import Tensor

from marble_cli.config.enums import OdeSolver, Precision
from marble_cli.config.schema import ModelConfig
from marble_cli.errors import RequestError
from marble_cli.objective.nft import nft_terms
from marble_cli.policy.families.sd15 import SD15
from marble_cli.policy.families.variance_preserving import (
    Timesteps,
    flow_times,
    scale_input,
    velocity_from_noise,
    velocity_from_v,
)
from marble_cli.policy.load import load_policy
from marble_cli.rollout.ode import make_scheduler, sample, sampling_times
from tests.policy.families.cases import PROMPTS, Case
from tests.policy.families.unets import BETAS

ANGLES = torch.linspace(0.03, 1.5, 7, dtype=torch.float64)  # alpha = cos, sigma = sin
SOLVERS = {OdeSolver.euler: EulerDiscreteScheduler, OdeSolver.dpm2: DPMSolverMultistepScheduler}


@pytest.fixture
def noised() -> Any:
    """A latent and noise at every angle, x = alpha x0 + sigma eps, and the same as a flow model has it."""
    draw = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(7, 4, 2, 2, generator=draw, dtype=torch.float64) for _ in range(2))
    alpha, sigma = (part[:, None, None, None] for part in (ANGLES.cos(), ANGLES.sin()))
    t = ANGLES.sin() / (ANGLES.sin() + ANGLES.cos())
    xt = torch.lerp(x0, eps, t[:, None, None, None])
    return SimpleNamespace(
        x0=x0, eps=eps, alpha=alpha, sigma=sigma, x=alpha * x0 + sigma * eps, t=t, xt=xt, draw=draw
    )


def test_network_is_given_its_own_latents(noised: Any) -> None:
    torch.testing.assert_close(scale_input(noised.xt, noised.t), noised.x, rtol=1e-12, atol=1e-12)


def test_velocity_predicts_the_latents_that_the_network_predicts(noised: Any) -> None:
    """For predictions that are not right: x0 = (x - sigma eps) / alpha, and x0 = alpha x - sigma v."""
    n, predicted = noised, torch.randn(noised.x.shape, generator=noised.draw, dtype=torch.float64)
    from_noise, from_v = (n.x - n.sigma * predicted) / n.alpha, n.alpha * n.x - n.sigma * predicted
    for x0, velocity in (
        (from_noise, velocity_from_noise(predicted, n.xt, n.t)),
        (from_v, velocity_from_v(predicted, n.xt, n.t)),
    ):
        torch.testing.assert_close(n.xt - n.t[:, None, None, None] * velocity, x0, rtol=1e-11, atol=1e-11)


def test_right_predictions_give_the_velocity_of_a_flow_model(noised: Any) -> None:
    n = noised
    for velocity in (
        velocity_from_noise(n.eps, n.xt, n.t),
        velocity_from_v(n.alpha * n.eps - n.sigma * n.x0, n.xt, n.t),
    ):
        torch.testing.assert_close(velocity, n.eps - n.x0, rtol=1e-11, atol=1e-11)


def test_loss_is_that_of_predicted_latents(noised: Any) -> None:
    """P is the weighted square of x0+ - x0; x0+ is on the line through both policies' predictions of x0."""
    n, beta = noised, 0.3
    theta, old = (torch.randn(n.x.shape, generator=n.draw, dtype=torch.float64) for _ in range(2))
    v_theta, v_old = (velocity_from_noise(eps, n.xt, n.t) for eps in (theta, old))
    terms = nft_terms(n.x0, n.xt, n.t, v_theta, v_old, beta=beta)
    predicted, behaviour = ((n.x - n.sigma * eps) / n.alpha for eps in (theta, old))
    for found, sign in ((terms.positive, 1), (terms.negative, -1)):
        residual = (behaviour + sign * beta * (predicted - behaviour) - n.x0).flatten(1)
        expected = residual.square().mean(1) / residual.abs().mean(1)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def network(x: Tensor, timesteps: Tensor) -> Tensor:
    """A network whose output depends on all that it is given."""
    return torch.tanh(1.3 * x.flip(1) + torch.sin(timesteps / 150)[:, None, None, None]) - 0.2 * x


@pytest.mark.parametrize("solver", list(SOLVERS), ids=lambda solver: solver.value)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    "spacing",
    [
        {},
        {"timestep_spacing": "leading", "steps_offset": 1},
        {"timestep_spacing": "trailing", "use_karras_sigmas": True},
    ],
    ids=["linspace", "leading", "karras"],
)
def test_solvers_draw_what_diffusers_solvers_draw(
    solver: OdeSolver, prediction: str, spacing: dict[str, Any]
) -> None:
    if solver is OdeSolver.dpm2 and "use_karras_sigmas" in spacing:
        spacing = {"timestep_spacing": "trailing"}  # diffusers' rounds Karras' timesteps for this solver
    noise = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    own: Any = SOLVERS[solver](**BETAS, prediction_type=prediction, **spacing)
    own.set_timesteps(9)
    x = noise * own.init_noise_sigma
    for timestep in own.timesteps:
        output = network(own.scale_model_input(x, timestep), timestep.float().expand(2))
        x = own.step(output, timestep, x, return_dict=False)[0]
    config = {"prediction_type": prediction, **own.config}
    timesteps, found = Timesteps(config), make_scheduler(config, solver, 9, 1)
    to_velocity = velocity_from_v if prediction == "v_prediction" else velocity_from_noise

    def velocity(xt: Tensor, t: Tensor) -> Tensor:
        return to_velocity(network(scale_input(xt, t), timesteps.at(t)), xt, t)

    torch.testing.assert_close(sample(velocity, noise, found), x, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(timesteps.at(sampling_times(found)), own.timesteps.float(), rtol=0, atol=1e-3)


def test_whole_timesteps_are_found_exactly() -> None:
    config = {**BETAS, "prediction_type": "epsilon"}
    kept = EulerDiscreteScheduler(**BETAS).alphas_cumprod
    times = flow_times(((1 - kept) / kept) ** 0.5)
    assert torch.equal(Timesteps(config).at(times), torch.arange(1000.0))
    assert Timesteps(config).at(torch.tensor([0.0, 0.999])).tolist() == [0, 999]


@pytest.mark.parametrize(
    ("scheduler", "unet", "said"),
    [
        ({"prediction_type": "sample"}, {}, "prediction_type=sample"),
        ({"sigma_data": 0.5}, {}, "the noise levels of EDM"),
        ({}, {"time_cond_proj_dim": 256}, "a distilled guidance"),
    ],
)
def test_models_in_other_coordinates_are_refused(
    scheduler: dict[str, Any], unet: dict[str, Any], said: str
) -> None:
    pipeline: Any = SimpleNamespace(
        scheduler=SimpleNamespace(config=scheduler), unet=SimpleNamespace(config=unet), components={}
    )
    with pytest.raises(RequestError, match=f"model.path=.* has {said}.*Expected"):
        SD15(pipeline, ModelConfig())


@pytest.mark.parametrize("case", ["sdxl"], indirect=True)
@torch.no_grad()
def test_absent_negative_prompts_are_zeros_as_in_the_pipeline(case: Case) -> None:
    """A text beside them keeps its own embeddings."""
    found = case.policy.encode(["", "dim"], negative=True)
    _, absent, _, absent_pooled = case.plain.encode_prompt(PROMPTS[0])
    _, there, _, there_pooled = case.plain.encode_prompt(PROMPTS[0], negative_prompt="dim")
    assert not absent.any()
    torch.testing.assert_close(found.tensors["tokens"], torch.cat([absent, there]))
    torch.testing.assert_close(found.tensors["pooled"], torch.cat([absent_pooled, there_pooled]))


@pytest.mark.parametrize("case", ["sdxl"], indirect=True)
def test_vae_that_overflows_in_float16_decodes_in_float32(case: Case) -> None:
    policy = load_policy(replace(case.model, precision=Precision.fp16), seed=0)
    assert policy.pipeline.vae.dtype is torch.float32
    assert {weight.dtype for weight in policy.network.conv_in.parameters()} == {torch.float16}
    exact, _ = case.policy.decode(case.start())
    assert (policy.decode(case.start())[0].int() - exact.int()).abs().max() <= 1  # its weights were rounded
