"""From the configuration to a policy; the one place that knows which families there are."""

import torch

from marble_cli.config.schema import Model
from marble_cli.errors import ConfigError
from marble_cli.policy.base import Policy


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU of this process where there is one, else the CPU."""
    if name != "auto":
        return torch.device(name)
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def load_policy(model: Model, seed: int) -> Policy:
    """Load the frozen model and give it its two adapters.

    Raises:
        ConfigError: `model.family` is unknown.
        RequestError: the weights cannot be found or do not fit.
    """
    if model.family != "sd3":
        raise ConfigError(f"model.family={model.family} is unknown. Expected: sd3.")
    from marble_cli.policy.sd3 import SD3Policy, load_pipeline

    device = pick_device(model.device)
    return SD3Policy(load_pipeline(model, device), model, device, seed)
