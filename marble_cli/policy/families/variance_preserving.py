"""Make a flow model of a diffusion model whose network predicts noise or v, by a change of coordinates.

Such a model noises latents by x = alpha x0 + sigma eps with alpha^2 + sigma^2 = 1. Let s = sigma / alpha and
t = s / (1 + s). Then x / (alpha + sigma) = (1 - t) x0 + t eps, the `xt` of a flow model, with alpha + sigma =
1 / n(t) and n(t) = sqrt((1 - t)^2 + t^2). Its velocity is eps - x0, and `xt - t v` is the network's own
prediction of x0. An Euler step in t keeps the predictions of x0 and eps, as Euler's step in s and DDIM do.

Source: for v, Salimans and Ho, arXiv 2202.00512, section 4; for s, Karras et al., arXiv 2206.00364.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler
from torch import Tensor

from marble_cli.config.schema import ModelConfig
from marble_cli.errors import RequestError
from marble_cli.policy.base import Family, PromptEmbeddings
from marble_cli.policy.diffusers_types import Pipeline
from marble_cli.policy.families.guidance import guide_from_negative
from marble_cli.policy.families.latents import latent_shape

# Keys of a scheduler's configuration, and their values that have other coordinates or times than these.
UNSUPPORTED = {
    "prediction_type": ("sample", "flow_prediction"),
    "interpolation_type": ("log_linear",),
    "timestep_type": ("continuous",),
}
SPACED_IN_LOG = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


def scale_input(xt: Tensor, t: Tensor) -> Tensor:
    """Return the network's input alpha x0 + sigma eps from `xt` [B, ...] at times `t` [B]."""
    return xt / _norm(xt, t)


def velocity_from_noise(epsilon: Tensor, xt: Tensor, t: Tensor) -> Tensor:
    """Return eps - x0 [B, ...] from a prediction of eps: (eps - xt) / (1 - t)."""
    return (epsilon - xt) / (1 - _along(t, xt))


def velocity_from_v(v: Tensor, xt: Tensor, t: Tensor) -> Tensor:
    """Return eps - x0 [B, ...] from a prediction of v = alpha eps - sigma x0: v / n + (2 t - 1) xt / n^2."""
    norm = _norm(xt, t)
    return v / norm + (2 * _along(t, xt) - 1) * xt / norm.square()


def _norm(xt: Tensor, t: Tensor) -> Tensor:
    t = _along(t, xt)
    return ((1 - t).square() + t.square()).sqrt()


def _along(t: Tensor, xt: Tensor) -> Tensor:
    """Return times [B] in the shape in which they multiply `xt` [B, ...]."""
    return t.reshape(-1, *[1] * (xt.dim() - 1))


def flow_times(noise_levels: Tensor) -> Tensor:
    """Return t = s / (1 + s) in float32 of noise levels s = sigma / alpha."""
    s = noise_levels.double()
    return (s / (1 + s)).float()


def euler_scheduler(config: Mapping[str, Any]) -> Any:
    """Make diffusers' Euler solver of a model's scheduler configuration; its last noise level is 0."""
    return EulerDiscreteScheduler.from_config(config, final_sigmas_type="zero")


class Timesteps:
    """The network's timesteps at times t, interpolated as the model's Euler solver interpolates them.

    At the time of a whole timestep this is that timestep exactly.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        kept = euler_scheduler(config).alphas_cumprod
        # In float32, as the solver has them; then as rounded as the times that are looked up.
        self.times = flow_times(((1 - kept) / kept) ** 0.5)
        self.in_log = any(config.get(key) for key in SPACED_IN_LOG)

    def at(self, t: Tensor) -> Tensor:
        """Return the timesteps [B] float32 of times `t` [B]."""
        if self.times.device != t.device:
            self.times = self.times.to(t.device)
        after = torch.searchsorted(self.times, t.contiguous()).clamp(1, len(self.times) - 1)
        low, high, level = (self._level(time) for time in (self.times[after - 1], self.times[after], t))
        return (after - 1 + ((level - low) / (high - low)).clamp(0, 1)).float()

    def _level(self, t: Tensor) -> Tensor:
        s = t.double() / (1 - t.double())
        return s.log() if self.in_log else s


class VariancePreserving(Family):
    """A pipeline with a UNet that predicts noise or v; a base of implementations of `policy.base.Family`."""

    network = "unet"
    text = "clip"
    conditions = False
    even_times = False
    float16 = True
    float32_latents = True
    guided = staticmethod(guide_from_negative)

    def __init__(self, pipeline: Pipeline, model: ModelConfig) -> None:
        self.pipeline, self.model = pipeline, model
        names = ("text_encoder", "text_encoder_2")
        encoders = [pipeline.components.get(name) for name in names]
        self.encoders = tuple(encoder for encoder in encoders if encoder is not None)
        config, unet = pipeline.scheduler.config, pipeline.unet.config
        _check(config, unet, model)
        self.latent_shape = latent_shape(unet["in_channels"], model, pipeline.vae_scale_factor)
        self.timesteps = Timesteps(config)
        predicts_v = config.get("prediction_type") == "v_prediction"
        self.to_velocity = velocity_from_v if predicts_v else velocity_from_noise

    @staticmethod
    def left_out(model: ModelConfig) -> tuple[str, ...]:
        return ("image_encoder", "feature_extractor")

    @staticmethod
    def downscaling(vae: Mapping[str, Any], network: Mapping[str, Any]) -> int:
        scale: int = 2 ** (len(vae["block_out_channels"]) - 1)
        return scale

    def velocity(self, xt: Tensor, t: Tensor, embeddings: PromptEmbeddings) -> Tensor:
        predicted: Tensor = self.pipeline.unet(
            scale_input(xt, t).to(embeddings.tensors["tokens"].dtype),
            self.timesteps.at(t),
            encoder_hidden_states=embeddings.tensors["tokens"],
            added_cond_kwargs=self.added_conditions(xt, embeddings),
            return_dict=False,
        )[0]
        return self.to_velocity(predicted.to(xt.dtype), xt, t)

    def added_conditions(self, xt: Tensor, embeddings: PromptEmbeddings) -> dict[str, Tensor]:
        """Return the UNet's inputs besides latents, timesteps and tokens, by its names for them."""
        return {}

    def decode(self, x0: Tensor) -> Tensor:
        vae = self.pipeline.vae
        return vae.decode(x0 / vae.config["scaling_factor"], return_dict=False)[0]

    def scheduler_config(self) -> dict[str, Any]:
        return {"prediction_type": "epsilon", **self.pipeline.scheduler.config}


def _check(scheduler: Mapping[str, Any], unet: Mapping[str, Any], model: ModelConfig) -> None:
    """Refuse models with other coordinates, and those that guidance was distilled into.

    Raises:
        RequestError: the model is one of them.
    """
    wrong = [f"{key}={scheduler[key]}" for key, values in UNSUPPORTED.items() if scheduler.get(key) in values]
    if "sigma_data" in scheduler:
        wrong.append("the noise levels of EDM")
    if unet.get("time_cond_proj_dim") is not None:
        wrong.append("a distilled guidance (time_cond_proj_dim)")
    if wrong:
        raise RequestError(
            f"model.path={model.path} has {wrong[0]}, which marble cannot train. Expected a model that "
            "predicts epsilon or v at discrete timesteps, such as stabilityai/stable-diffusion-xl-base-1.0."
        )
