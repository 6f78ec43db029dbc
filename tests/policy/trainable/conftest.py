"""The model of the other tests with all weights trained, and its plain transformer."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
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


@pytest.fixture(autouse=True)
def _compiled_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile the blocks and their backward passes, and leave out the C++ kernels: about sixty runs of g++.

    Tracing is what our hooks, adapters and switches could break; tests/gpu has kernels, by Triton.
    """
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
