"""Refuse keys of the KL term that could have no effect."""

from marble_cli.config.algorithm import guidance_of_reference
from marble_cli.config.enums import KlGate, KlReference
from marble_cli.config.schema import RunConfig
from marble_cli.errors import ConfigError


def check_kl(config: RunConfig) -> None:
    """Check that the KL term has a reference that the model has, and a gate that can close.

    Raises:
        ConfigError: naming the key, its value and what was expected.
    """
    if config.algorithm.kl_gate is KlGate.watched and not config.eval_rewards:
        raise ConfigError(
            "algorithm.kl_gate=watched: nothing is watched. Expected a reward under eval_rewards, such as "
            "'+eval_rewards.NAME={plugin: PLUGIN}', or algorithm.kl_gate=none."
        )
    algorithm, model = config.algorithm, config.model
    if algorithm.kl_reference is KlReference.base:
        if algorithm.kl_guidance is not None:
            raise ConfigError(
                f"algorithm.kl_guidance={algorithm.kl_guidance:g}: algorithm.kl_reference=base has no "
                "guidance. Expected null, or algorithm.kl_reference=guided."
            )
        return
    key = f"algorithm.kl_reference={algorithm.kl_reference.value}"
    if model.guidance is not None:
        raise ConfigError(
            f"{key}: guidance is distilled into {model.path}, so its frozen velocity is guided already, by "
            f"model.guidance={model.guidance:g}. Expected algorithm.kl_reference=base."
        )
    if not guidance_of_reference(algorithm, config.rollout.guidance_scale) > 1:
        raise ConfigError(
            f"{key}: algorithm.kl_guidance=null takes rollout.guidance_scale="
            f"{config.rollout.guidance_scale:g}, which means no guidance. Expected algorithm.kl_guidance "
            "above 1: the scale at which the base model draws well, such as 4.5 for Stable Diffusion 3.5."
        )
