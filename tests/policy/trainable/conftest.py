"""The model of the other tests with all weights trained, and its plain transformer."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from diffusers import SD3Transformer2DModel

from marble_cli.config.enums import Train
from marble_cli.config.schema import ModelConfig


@pytest.fixture(scope="session")
def full(model: ModelConfig) -> ModelConfig:
    return replace(model, train=Train.full)


@pytest.fixture(scope="session")
def plain(pipeline_folder: Path) -> Any:
    """Return the transformer as diffusers itself loads it; tests must not change it."""
    return SD3Transformer2DModel.from_pretrained(
        pipeline_folder, subfolder="transformer", local_files_only=True
    )
