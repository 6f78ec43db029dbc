"""The keys of `trainer.select`: which images of a step are trained on."""

from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from marble_cli.config.enums import SelectBy
from marble_cli.config.ranges import Range, ranged
from marble_cli.errors import ConfigError


@dataclass
class SelectConfig:
    """Images of a step that are trained on."""

    fraction: float = ranged(1.0, Range(lambda share: 0.0 < share <= 1.0, "a number in (0, 1]"))
    by: SelectBy = SelectBy.signal


def spell_out_select(tree: DictConfig) -> None:
    """Replace `trainer.select=all` by its keys.

    Raises:
        ConfigError: it is another word, or a number.
    """
    value = OmegaConf.select(tree, "trainer.select")
    if value != "all" and not (value is None or OmegaConf.is_dict(value)):
        raise ConfigError(
            f"trainer.select={value}: expected all, or keys such as trainer.select.fraction=0.5."
        )
    if value == "all":
        OmegaConf.update(tree, "trainer.select", {"fraction": 1.0})
