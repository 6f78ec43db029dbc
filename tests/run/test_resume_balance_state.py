"""A resumed run restores the state of its balance."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from marble_cli.balance import Solution, registry
from marble_cli.checkpoint import manifest, store
from marble_cli.config.schema import RunConfig
from marble_cli.errors import CheckpointError
from marble_cli.metrics.jsonl import read_rows
from marble_cli.run.agreement import balance_settings
from marble_cli.run.loop import Trainer
from marble_cli.run.train import train
from tests.run.runs import SETTINGS, WEIGHTS, assert_same_run, copied

RunConfigMaker = Callable[..., RunConfig]


class Tiring:
    """A third party's balance: weights of 1 / n at its n-th step, with an integer as its state."""

    def __init__(self, *_: Any) -> None:
        self.asked = torch.tensor(0)

    def __call__(self, gram: torch.Tensor) -> Solution:
        self.asked += 1
        weights = torch.ones(len(gram), dtype=torch.float64) / self.asked
        return Solution(weights, weights, weights > 0, float("nan"), "tiring", 0, 0.0)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"asked": self.asked}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.asked = state["asked"].clone()


@pytest.fixture(scope="module")
def remembering(
    request: pytest.FixtureRequest, run_config: RunConfigMaker
) -> Iterator[Callable[..., RunConfig]]:
    """A function that composes a run of a number of steps with a stateful balance."""
    name = request.param
    if name.startswith("torchjd:"):
        pytest.importorskip("torchjd")
    entry = EntryPoint("tiring", f"{__name__}:Tiring", "marble.balances")
    overrides = (*SETTINGS, "balance.mode=full", "balance.shared_term=inside", "trainer.eval_every=0")

    def make(folder: Path, steps: int) -> RunConfig:
        config = run_config(*overrides, f"run.dir={folder}", f"trainer.steps={steps}")
        return replace(config, balance=replace(config.balance, name=name))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(registry, "balances", lambda: {"tiring": entry})
        yield make


@pytest.fixture(scope="module")
def whole(remembering: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of four steps without a stop; its checkpoints are those of 2 and 4."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(remembering(folder, 4), resume="auto") == 0
    return folder


REMEMBERING = pytest.mark.parametrize(
    "remembering", ["torchjd:GradVac", "torchjd:PCD", "tiring"], indirect=True
)


def resign(folder: Path) -> None:
    """Rewrite the manifest of a step folder for its present files."""
    state = json.loads((folder / "state.json").read_text())
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.safetensors"))
    listing = {name: manifest.describe(folder / name) for name in files}
    manifest.write(folder, store.step_of(folder), state["info"], listing, state["scale"])


def cut_back(run: Path) -> Path:
    """Take the checkpoint of step 4 from a run, which then goes on after step 2."""
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    return run


@REMEMBERING
def test_stateful_balance_resumes_exactly(
    remembering: Callable[..., RunConfig],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Resume after a step, as after a kill, and after an error in a step that had balanced its gradients."""
    apply = Trainer.apply

    def broken(self: Trainer, gradient: torch.Tensor) -> None:
        if self.progress.step == 1:
            self.checkpoints.mid_update = False  # no weight was changed yet
            raise OSError("a cable was pulled")
        apply(self, gradient)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "apply", broken)
        with pytest.raises(OSError, match="cable"):
            train(remembering(tmp_path / "torn", 4), resume="auto")
    assert (tmp_path / "torn" / "checkpoints" / "latest").read_text().strip() == "step-00000001"
    cut_back(copied(whole, tmp_path / "parts"))
    for folder in ("parts", "torn"):
        assert train(remembering(tmp_path / folder, 4), resume="auto") == 0
    assert_same_run(tmp_path / "parts", whole, stateful=True)
    assert_same_run(tmp_path / "torn", whole, stateful=True)
    assert "start anew" not in caplog.text


@REMEMBERING
def test_checkpoint_without_balance_state_loads_with_a_warning(
    remembering: Callable[..., RunConfig], whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From the same checkpoint of step 2, but without the state of the balance, the run ends elsewhere."""
    older = cut_back(copied(whole, tmp_path / "older"))
    folder = older / "checkpoints" / "step-00000002"
    (folder / "balance.safetensors").unlink()
    resign(folder)
    assert train(remembering(older, 4), resume="auto") == 0
    ends = [
        (run / "checkpoints" / "step-00000004" / WEIGHTS["lora"][0]).read_bytes() for run in (older, whole)
    ]
    assert ends[0] != ends[1]
    assert caplog.text.count("holds no state of the balance") == 1
    assert "its averages start anew" in caplog.text


@REMEMBERING
def test_refused_balance_state_is_a_damaged_checkpoint(
    remembering: Callable[..., RunConfig], whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = copied(whole, tmp_path / "run")
    folder = run / "checkpoints" / "step-00000004"
    save_file({"111.other": torch.ones(1)}, folder / "balance.safetensors")
    resign(folder)
    with pytest.raises(CheckpointError, match=r"refuses its state: .*Use another step folder"):
        train(remembering(tmp_path / "new", 5), resume=str(folder))
    assert train(remembering(run, 4), resume="auto") == 0
    assert "step-00000004 is not usable and was passed over" in caplog.text
    assert store.load(folder)[0].tensors["balance"]


def test_the_step_of_the_next_refresh_and_the_guards_are_kept(
    run_config: RunConfigMaker, tmp_path: Path
) -> None:
    guard = ("rewards.compressibility.role=guard", "rewards.compressibility.margin=0.5")
    stale = (*SETTINGS, *guard, "balance.refresh_when=stale", "trainer.eval_every=0")
    for folder, steps in (("whole", 4), ("parts", 1), ("parts", 3), ("parts", 4)):
        config = run_config(*stale, f"run.dir={tmp_path / folder}", f"trainer.steps={steps}")
        assert train(config, resume="auto") == 0
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    rows = read_rows(tmp_path / "whole" / "metrics.jsonl")
    assert max(row.get("balance/guard/compressibility/multiplier", 0.0) for row in rows) > 0.0
    assert any(row["balance/weight/compressibility"] > 0 and not row["balance/refresh"] for row in rows)


def test_another_guard_is_another_balance(run_config: RunConfigMaker) -> None:
    trees = [
        OmegaConf.to_container(OmegaConf.structured(run_config(*more)), enum_to_str=True)
        for more in ((), ("rewards.compressibility.role=guard",))
    ]
    plain, guarded = map(balance_settings, trees)  # type: ignore[arg-type]
    assert (plain.pop("guards"), guarded.pop("guards")) == ({}, {"compressibility": 0.0})
    weights = dict.fromkeys(trees[0]["rewards"], 1.0)  # type: ignore[index, call-overload]
    assert plain == guarded == {**trees[0]["balance"], "reward_weights": weights}  # type: ignore[index, call-overload]
    heavier = OmegaConf.to_container(
        OmegaConf.structured(run_config("rewards.compressibility.weight=2")), enum_to_str=True
    )
    assert balance_settings(heavier)["reward_weights"] == {**weights, "compressibility": 2.0}  # type: ignore[arg-type]
    older = {**trees[0], "rewards": {"ocr": {"plugin": "ocr"}}}  # type: ignore[dict-item]
    assert balance_settings(older)["guards"] == {}
