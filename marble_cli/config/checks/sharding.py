"""Refuse what cannot be divided among processes with trainer.parallel=fsdp."""

from marble_cli.config.enums import OptimizerName, Parallel, Quantization
from marble_cli.config.schema import RunConfig
from marble_cli.errors import ConfigError


def check_sharding(config: RunConfig) -> None:
    """Check that no setting works on whole tensors only if tensors are sharded.

    Raises:
        ConfigError: naming the key that does.
    """
    if config.trainer.parallel is not Parallel.fsdp:
        return
    if config.optimizer.name is OptimizerName.adamw8bit:
        raise ConfigError(
            "optimizer=adamw8bit: its blocks of 256 values cannot be cut into the shards of "
            "trainer.parallel=fsdp. Expected optimizer=adamw, or trainer.parallel=ddp."
        )
    if (kind := config.model.quantization) is not Quantization.none:
        raise ConfigError(
            f"model.quantization={kind.value}: quantised layers cannot be cut into the shards of "
            "trainer.parallel=fsdp. Expected model.quantization=none, or trainer.parallel=ddp."
        )
