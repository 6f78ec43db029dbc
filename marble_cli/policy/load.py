"""From the configuration to a policy; the one place that knows which families there are."""

import torch

from marble_cli.config.schema import Model
from marble_cli.errors import ConfigError, RequestError
from marble_cli.policy.base import ModelSize, Policy


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU of this process where there is one, else the CPU.

    Raises:
        RequestError: there is no such device.
    """
    if name != "auto":
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise RequestError(
                f"model.device={name}: {reason}. Expected auto, cpu, cuda or cuda:N."
            ) from error
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
    _check_family(model)
    from marble_cli.policy.sd3 import SD3Policy, load_pipeline

    device = pick_device(model.device)
    return SD3Policy(load_pipeline(model, device), model, device, seed)


def model_size(model: Model) -> ModelSize | None:
    """Sizes read off a local model's configuration files; None if it is not on this machine.

    Raises:
        ConfigError: `model.family` is unknown.
    """
    _check_family(model)
    from marble_cli.policy.sd3 import model_size as measure

    return measure(model)


def _check_family(model: Model) -> None:
    if model.family != "sd3":
        raise ConfigError(f"model.family={model.family} is unknown. Expected: sd3.")
