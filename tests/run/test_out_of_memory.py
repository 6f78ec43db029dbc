"""A run that is out of memory says what to lower, keeps its last step and resumes."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from marble_cli.config.schema import RunConfig
from marble_cli.errors import DeviceMemoryError
from marble_cli.policy.pipeline import PipelinePolicy
from marble_cli.run.checkpoints import Checkpoints
from marble_cli.run.train import train
from marble_cli.step.direction import Descent

RunConfigMaker = Callable[..., RunConfig]


def test_the_first_trial_of_the_rewards_says_what_to_do(
    run_config: RunConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(self: PipelinePolicy, x0: Tensor) -> Tensor:
        return torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(PipelinePolicy, "decode", greedy)
    said = "out of memory when the rewards were first tried: .* Free the device, or have rewards compute else"
    with pytest.raises(DeviceMemoryError, match=said):
        train(run_config(f"run.dir={tmp_path}"), resume="auto")


def test_a_run_that_runs_out_goes_on_with_smaller_batches(
    run_config: RunConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(f"run.dir={tmp_path}", "trainer.checkpoint_every=9")
    direct = Descent.direct

    def greedy(self: Descent, number: int, *rest: Any) -> Any:
        if number == 2:
            torch.empty(2**60, dtype=torch.uint8)
        return direct(self, number, *rest)

    monkeypatch.setattr(Descent, "direct", greedy)
    with pytest.raises(
        DeviceMemoryError, match=r"the training of step 2: .* Lower trainer\.micro_batch_size"
    ):
        train(config, resume="auto")
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == "step-00000001"
    monkeypatch.setattr(Descent, "direct", direct)
    smaller = run_config(f"run.dir={tmp_path}", "trainer.checkpoint_every=9", "trainer.micro_batch_size=2")
    assert train(smaller, resume="auto") == 0
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == "step-00000002"


def test_what_ran_out_is_let_go_before_a_checkpoint_is_made(
    run_config: RunConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Activations of the step that failed would still fill the device."""
    held: list[weakref.ref[Tensor]] = []
    direct, pack = Descent.direct, Checkpoints.pack

    def greedy(self: Descent, number: int, *rest: Any) -> Any:
        if number == 2:
            activations = torch.ones(9)
            held.append(weakref.ref(activations))
            torch.empty(2**60, dtype=torch.uint8)
        return direct(self, number, *rest)

    def packed(self: Checkpoints) -> Any:
        assert held[0]() is None
        return pack(self)

    monkeypatch.setattr(Descent, "direct", greedy)
    monkeypatch.setattr(Checkpoints, "pack", packed)
    with pytest.raises(DeviceMemoryError, match="the training of step 2"):
        train(run_config(f"run.dir={tmp_path}", "trainer.checkpoint_every=9"), resume="auto")
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == "step-00000001"


def test_a_checkpoint_without_room_hides_no_error(
    run_config: RunConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = Descent.direct

    def greedy(self: Descent, number: int, *rest: Any) -> Any:
        if number == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return direct(self, number, *rest)

    def pack(self: Checkpoints) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 MiB.")

    monkeypatch.setattr(Descent, "direct", greedy)
    monkeypatch.setattr(Checkpoints, "pack", pack)
    with pytest.raises(DeviceMemoryError, match=r"the training of step 2: CUDA .* 2\.00 GiB\. Lower trainer"):
        train(run_config(f"run.dir={tmp_path}", "trainer.checkpoint_every=9"), resume="auto")
    log = (tmp_path / "log.txt").read_text()
    assert (
        "checkpointing step 1 on the way out failed too: out of memory while the last step was checkpointed: "
        "CUDA out of memory" in log
    )
