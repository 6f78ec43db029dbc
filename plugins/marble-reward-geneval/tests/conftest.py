"""Tiny models of the real classes, written once per session, and pictures for them."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor


def _tiny_models() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_geneval", Path(__file__).with_name("tiny_geneval.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """Return the module that writes the models."""
    return _tiny_models()


@pytest.fixture(scope="session")
def mask2former(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tiny.write_mask2former(tmp_path_factory.mktemp("mask2former"))
    return folder


@pytest.fixture(scope="session")
def detr(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tiny.write_detr(tmp_path_factory.mktemp("detr"))
    return folder


@pytest.fixture(scope="session")
def clip(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tiny.write_clip(tmp_path_factory.mktemp("clip"))
    return folder


@pytest.fixture(scope="session")
def pictures() -> Callable[..., Tensor]:
    """Return a function that draws patches of colour."""

    def draw(count: int, height: int = 64, width: int = 64, seed: int = 0) -> Tensor:
        coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
        fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
        return (fine.clamp(0, 1) * 255).byte()

    return draw
