"""The algorithm on one page takes the same first step as the trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch

from marble_cli.policy.base import Policy
from marble_cli.policy.load import load_policy
from marble_cli.run import train as run
from scripts import minimal_loop


@pytest.mark.parametrize(
    "overrides",
    [["balance=marble"], ["balance=marble", "balance.shared_term=inside", "trainer.times_per_image=2"]],
)
def test_first_step_equals_the_trainers(
    base_overrides: list[str],
    overrides: list[str],
    tmp_path: Path,
    run_config: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    policies: list[Policy] = []

    def loaded(*arguments: Any) -> Policy:
        policies.append(load_policy(*arguments))
        return policies[-1]

    monkeypatch.setattr(run, "load_policy", loaded)
    config = run_config(*overrides, "trainer.steps=1", f"run.dir={tmp_path}")
    start = {
        name: tensor.detach().clone()
        for name, tensor in load_policy(config.model, 0).parameters("trained").items()
    }
    assert run.train(config, resume="never") == 0
    minimal = minimal_loop.train(1, [*base_overrides, *overrides])
    assert "step 1: colorfulness +" in capsys.readouterr().out
    for adapter in ("trained", "behaviour"):
        one, other = policies[0].parameters(adapter), minimal.parameters(adapter)  # type: ignore[arg-type]
        for name, tensor in one.items():
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-7)
    assert any(
        (tensor - start[name]).abs().max() > 1e-5
        for name, tensor in policies[0].parameters("trained").items()
    )


def test_a_sum_of_rewards_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"balance=weighted_sum.*balance=marble"):
        minimal_loop.main(["balance=weighted_sum", "rewards=[colorfulness,compressibility]"])
