"""8-bit AdamW: near AdamW, exact on resume, refused where it cannot work."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from marble_cli.config.schema import RunConfig
from marble_cli.errors import CheckpointError, ConfigError, RequestError
from marble_cli.plan.plan import plan
from marble_cli.run.build import build_optimizer
from marble_cli.run.moments import LEAST_8BIT, expected_moments, hold_moments, load_moments
from marble_cli.run.train import train
from tests.checkpoint.damage import relist
from tests.run.runs import SETTINGS, assert_same_run, copied

RunConfigMaker = Callable[..., RunConfig]
SHAPES = {"large": (64, 100), "uneven": (7, 619), "small": (5, 6)}  # only the last keeps moments in float32


class Weights:
    """Stands for a policy: parameters of several sizes."""

    def __init__(self, device: str) -> None:
        draw = torch.Generator().manual_seed(0)
        self.named = {
            name: torch.nn.Parameter(torch.randn(shape, generator=draw).to(device))
            for name, shape in SHAPES.items()
        }

    def parameters(self, adapter: str) -> dict[str, torch.nn.Parameter]:
        return self.named


def take_steps(weights: Weights, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        draw = torch.Generator().manual_seed(step)
        for parameter in weights.named.values():
            parameter.grad = torch.randn(parameter.shape, generator=draw).to(parameter)
        optimizer.step()


def make(run_config: RunConfigMaker, name: str) -> tuple[Weights, torch.optim.Optimizer]:
    config = run_config(f"optimizer={name}", "optimizer.lr=0.01", "optimizer.weight_decay=0.1")
    weights: Any = Weights(config.model.device)
    return weights, build_optimizer(config, weights)


def test_it_moves_weights_nearly_as_adamw_does(run_config: RunConfigMaker) -> None:
    (plain, adamw), (coarse, adamw8bit) = (make(run_config, name) for name in ("adamw", "adamw8bit"))
    start = Weights(run_config().model.device)
    for weights, optimizer in ((plain, adamw), (coarse, adamw8bit)):
        take_steps(weights, optimizer, range(10))
    for name, parameter in plain.named.items():
        moved = (parameter - start.named[name]).norm()
        error = ((coarse.named[name] - parameter).norm() / moved).item()
        assert error < 0.05
        # On a GPU bitsandbytes decays weights after the step, not before: they differ by lr * weight_decay.
        exact = 1e-5 if parameter.device.type == "cpu" else 2e-3
        assert (error < exact) == (parameter.numel() < LEAST_8BIT)


def test_moments_are_bytes_and_scales_and_load_into_a_fresh_optimizer(run_config: RunConfigMaker) -> None:
    weights, optimizer = make(run_config, "adamw8bit")
    assert hold_moments(optimizer, weights.named) == {}
    take_steps(weights, optimizer, range(3))
    moments = hold_moments(optimizer, weights.named)
    assert {name: (tuple(m.shape), m.dtype) for name, m in moments.items()} == expected_moments(
        optimizer, weights.named
    )
    assert moments["large|state1"].dtype is torch.uint8
    assert moments["uneven|absmax2"].shape == (17,)  # of 4,333 values, 256 at a time
    again, fresh = make(run_config, "adamw8bit")
    with torch.no_grad():
        for name, parameter in again.named.items():
            parameter.copy_(weights.named[name])
    load_moments(fresh, again.named, moments)
    for one, other in ((weights, optimizer), (again, fresh)):
        take_steps(one, other, range(3, 6))
    assert all(torch.equal(weights.named[name], again.named[name]) for name in SHAPES)


@pytest.fixture(scope="module")
def settings() -> list[str]:
    """Settings of a run with parameters on both sides of the least size of 8-bit moments."""
    return [*SETTINGS, "optimizer=adamw8bit", "optimizer.lr=0.01", "model.lora.rank=300"]


@pytest.fixture(scope="module")
def whole(run_config: RunConfigMaker, settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adamw8bit") / "whole"
    assert train(run_config("trainer.steps=4", f"run.dir={folder}", *settings), resume="auto") == 0
    return folder


def test_resumed_run_equals_the_uninterrupted_one(
    run_config: RunConfigMaker, settings: list[str], whole: Path, tmp_path: Path
) -> None:
    moments = load_file(whole / "checkpoints" / "step-00000004" / "optimizer.safetensors")
    assert {value.dtype for value in moments.values()} == {torch.uint8, torch.float32}
    cut = copied(whole, tmp_path / "cut")
    shutil.rmtree(cut / "checkpoints" / "step-00000004")
    config = run_config("trainer.steps=4", f"run.dir={cut}", *settings)
    assert train(config, resume="auto") == 0
    assert_same_run(cut, whole)


@pytest.mark.parametrize(
    ("moment", "harm", "said"),
    [
        ("state1", lambda value: value.float(), "is of type torch.float32"),
        ("absmax2", lambda value: -value, "is below 0"),
        ("absmax1", lambda value: value[1:], "does not fit"),
    ],
)
def test_impossible_moments_are_refused(
    run_config: RunConfigMaker,
    settings: list[str],
    whole: Path,
    tmp_path: Path,
    moment: str,
    harm: Callable[[torch.Tensor], torch.Tensor],
    said: str,
) -> None:
    run = copied(whole, tmp_path / "run")
    step = run / "checkpoints" / "step-00000004"
    moments = load_file(step / "optimizer.safetensors")
    name = next(name for name in moments if name.endswith(moment))
    moments[name] = harm(moments[name]).contiguous()
    save_file(moments, step / "optimizer.safetensors")
    relist(step, "optimizer.safetensors")
    config = run_config("trainer.steps=5", f"run.dir={tmp_path / 'next'}", *settings)
    with pytest.raises(CheckpointError, match=said):
        train(config, resume=str(step))


def test_it_is_refused_with_shards(run_config: RunConfigMaker) -> None:
    with pytest.raises(ConfigError, match=r"optimizer=adamw8bit.*trainer\.parallel=fsdp"):
        run_config("optimizer=adamw8bit", "trainer.parallel=fsdp")


def test_a_missing_package_is_told_before_anything_is_loaded(
    run_config: RunConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    config = run_config("optimizer=adamw8bit", f"run.dir={tmp_path / 'run'}")
    for attempt in (plan, lambda config: train(config, resume="auto")):
        with pytest.raises(RequestError, match=r"bitsandbytes, .*'marble-cli\[small\]'"):
            attempt(config)
    assert RequestError.exit_code == 2
    assert not (tmp_path / "run").exists()
