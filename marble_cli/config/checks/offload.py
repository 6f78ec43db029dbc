"""Refuse what cannot work while weights are in the CPU's memory: model.offload=blocks."""

from marble_cli.config.enums import Offload, Parallel, Quantization, Switch, Train
from marble_cli.config.schema import RunConfig
from marble_cli.errors import ConfigError


def check_offload(config: RunConfig) -> None:
    """Check that no setting needs offloaded weights where they are not.

    Raises:
        ConfigError: naming the key that does.
    """
    model = config.model
    if model.offload is Offload.none:
        return
    key = f"model.offload={model.offload.value}"
    if model.train is Train.full:
        raise ConfigError(
            f"{key}: model.train=full updates every weight on the GPU. Expected model.train=lora, or "
            "model.offload=none; trainer.parallel=fsdp shares weights among GPUs."
        )
    if config.trainer.parallel is Parallel.fsdp:
        raise ConfigError(
            f"{key}: trainer.parallel=fsdp keeps a shard of every block on each GPU instead. Expected "
            "trainer.parallel=ddp, or model.offload=none."
        )
    if (kind := model.quantization) is not Quantization.none:
        raise ConfigError(
            f"{key} copies plain weights, and not those of model.quantization={kind.value}. Expected one of "
            "both: model.quantization=none, or model.offload=none."
        )
    if model.gradient_checkpointing is Switch.false:
        raise ConfigError(
            f"{key}: with model.gradient_checkpointing=false every block would stay on the GPU until its "
            "backward pass. Expected model.gradient_checkpointing=auto or true."
        )
