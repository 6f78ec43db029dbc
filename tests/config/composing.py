"""Overrides for tests: two built-in rewards, and a configuration with the file that it was dumped to."""

from pathlib import Path

from marble_cli.config.compose import compose, dump
from marble_cli.config.schema import RunConfig

BUILT_IN = "rewards=[colorfulness,compressibility]"


def written(folder: Path, *overrides: str) -> tuple[RunConfig, str]:
    """Compose overrides and dump the result into a file in `folder`."""
    config = compose(overrides)
    file = folder / "config.yaml"
    file.write_text(dump(config))
    return config, str(file)
