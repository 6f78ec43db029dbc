"""A run that was stopped and resumed equals an uninterrupted run, bit for bit."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from marble_cli.checkpoint import store
from marble_cli.checkpoint.resume import find_checkpoint
from marble_cli.config.compose import compose
from marble_cli.config.schema import RunConfig
from marble_cli.distributed.ranks import Ranks
from marble_cli.evaluate.score import Evaluator
from marble_cli.metrics.jsonl import read_rows
from marble_cli.policy.load import load_policy
from marble_cli.run.agreement import read_checkpoint
from marble_cli.run.basis import find_basis
from marble_cli.run.build import build_optimizer
from marble_cli.run.evaluations import Evaluations
from marble_cli.run.loop import Trainer
from marble_cli.run.resume import restore
from marble_cli.run.state import initial_progress, pack
from marble_cli.run.train import train
from tests.checkpoint.format_1 import rewrite_in_format_1
from tests.run.runs import SETTINGS, WEIGHTS, assert_same_run, copied

RunConfigMaker = Callable[..., RunConfig]


def test_finished_run_has_moved_in_every_part(finished: Path) -> None:
    """Weights, average and behaviour moved and differ, the cache is filled, every kind of step occurred."""
    rows = read_rows(finished / "metrics.jsonl")
    assert [(row["step"], row["phase"]) for row in rows] == [
        (0, "eval"),
        (1, "train"),
        (2, "train"),
        (2, "eval"),
        (3, "train"),
        (4, "train"),
        (4, "eval"),
    ]
    assert [row["balance/refresh"] for row in rows if row["phase"] == "train"] == [1, 0, 0, 1]
    assert [row["behaviour/eta"] for row in rows if row["phase"] == "train"] == pytest.approx(
        [0.3, 0.6, 0.9, 0.95]
    )
    folder = finished / "checkpoints" / "step-00000004"
    lora, ema = (load_file(folder / name / store.WEIGHTS["lora"]) for name in ("lora", "ema"))
    behaviour = load_file(folder / "behaviour.safetensors")
    up = [key for key in lora if "lora_B" in key]
    assert all(lora[key].abs().max() > 1e-3 for key in up)
    assert not any(torch.equal(lora[key], ema[key]) for key in up)
    assert len(behaviour) == len(lora)
    assert not any(
        torch.equal(value, other) for value in behaviour.values() for other in (*lora.values(), *ema.values())
    )
    cache = json.loads((folder / "state.json").read_text())["info"]["cache"]
    assert sum(cache["alpha"]) == pytest.approx(1.0)
    assert rows[-1]["eval/composite"] != rows[3]["eval/composite"]


def test_resume_after_two_steps_equals_the_uninterrupted_run(
    run_config: RunConfigMaker, finished: Path, tmp_path: Path
) -> None:
    for steps in (2, 4):
        config = run_config(f"trainer.steps={steps}", f"run.dir={tmp_path}", *SETTINGS)
        assert train(config, resume="auto") == 0
    assert_same_run(tmp_path, finished)


def test_a_run_of_several_sizes_resumes_exactly(
    run_config: RunConfigMaker, sized_prompts_folder: Path, tmp_path: Path
) -> None:
    """Some images are left out, of each size."""
    sized = f"data.root={sized_prompts_folder}", "trainer.select.fraction=0.7"
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for folder in (whole, resumed):
        if folder == resumed:
            shutil.rmtree(copied(whole, resumed) / "checkpoints" / "step-00000004")
        config = run_config("trainer.steps=4", f"run.dir={folder}", "rollout.groups=4", *SETTINGS, *sized)
        assert train(config, resume="auto") == 0
    assert_same_run(resumed, whole)
    rows = [row for row in read_rows(whole / "metrics.jsonl") if row["phase"] == "train"]
    assert all(row["signal/trained_images"] == 8 for row in rows)


def test_resume_after_a_kill_equals_the_uninterrupted_run(
    run_config: RunConfigMaker, finished: Path, tmp_path: Path
) -> None:
    """A SIGKILL in step 4 leaves later metrics, one truncated line and a half-written folder."""
    folder = copied(finished, tmp_path / "killed")
    shutil.rmtree(folder / "checkpoints" / "step-00000004")
    (folder / "checkpoints" / "latest").write_text("step-00000002\n")
    (folder / "checkpoints" / ".step-00000004.tmp" / "lora").mkdir(parents=True)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:5]) + "\n" + lines[5][:30])
    config = run_config("trainer.steps=4", f"run.dir={folder}", *SETTINGS)
    assert train(config, resume="auto") == 0
    assert_same_run(folder, finished)


@pytest.mark.parametrize("alpha", [1, 7])
def test_resume_is_exact_for_any_ratio_of_alpha_to_rank(
    run_config: RunConfigMaker, tmp_path: Path, alpha: int
) -> None:
    """Exported files hold B times alpha / 3, rounded, so they cannot be trained on exactly."""
    ratio = (
        "model.lora.rank=3",
        f"model.lora.alpha={alpha}",
        "trainer.eval_every=0",
        "trainer.checkpoint_every=1",
    )
    for folder, parts in (("whole", [4]), ("parts", [3, 4])):
        if folder == "parts":
            begun = copied(tmp_path / "whole", tmp_path / folder)
            for step in (2, 3, 4):
                shutil.rmtree(begun / f"checkpoints/step-0000000{step}")
        for steps in parts:
            config = run_config(f"trainer.steps={steps}", f"run.dir={tmp_path / folder}", *SETTINGS, *ratio)
            assert train(config, resume="auto") == 0
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    step = tmp_path / "whole" / "checkpoints" / "step-00000004"
    kept, written = load_file(step / "optimizer.safetensors"), load_file(step / WEIGHTS["lora"][0])
    exact = {
        f"transformer.{name.removesuffix('|lora')}": value
        for name, value in kept.items()
        if name.endswith("|lora")
    }
    assert exact
    assert any((written[name].double() / alpha * 3).float().ne(value).any() for name, value in exact.items())


def test_resume_from_format_1_is_exact(run_config: RunConfigMaker, finished: Path, tmp_path: Path) -> None:
    folder = copied(finished, tmp_path / "older")
    shutil.rmtree(folder / "checkpoints" / "step-00000004")
    rewrite_in_format_1(folder / "checkpoints" / "step-00000002")
    (folder / "checkpoints" / "latest").write_text("step-00000002\n")
    assert train(run_config("trainer.steps=4", f"run.dir={folder}", *SETTINGS), resume="auto") == 0
    assert_same_run(folder, finished)


def test_resume_of_full_weights_is_exact(run_config: RunConfigMaker, tmp_path: Path) -> None:
    """A kill in step 4 leaves the checkpoint of step 2; by then every trained weight has moved."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = ("model.train=full", "trainer.steps=4", *SETTINGS, "optimizer.lr=0.001")
    assert train(run_config(*settings, f"run.dir={whole}"), resume="auto") == 0
    shutil.copytree(whole, killed)
    shutil.rmtree(killed / "checkpoints" / "step-00000004")
    assert train(run_config(*settings, f"run.dir={killed}"), resume="auto") == 0
    assert_same_run(killed, whole, "full")
    trained, ema = (load_file(whole / "checkpoints/step-00000004" / name) for name in WEIGHTS["full"])
    behaviour = load_file(whole / "checkpoints/step-00000004/behaviour.safetensors")
    base = load_policy(run_config("model.train=full", "model.device=cpu").model, 0).network.state_dict()
    still = {
        name
        for name in behaviour
        if any(torch.equal(a[name], b[name]) for a, b in combinations((base, trained, ema, behaviour), 2))
    }
    assert still <= {"transformer_blocks.1.attn.norm_added_q.weight"}  # its output is unused


def test_signal_checkpoints_the_current_step(
    run_config: RunConfigMaker, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Trainer.step

    def signalled(self: Trainer, step: int) -> dict[str, Any]:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(self, step)

    config = run_config("trainer.steps=4", f"run.dir={tmp_path}", *SETTINGS)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", signalled)
        assert train(config, resume="auto") == 143
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == "step-00000003"
    assert train(config, resume="auto") == 0
    assert_same_run(tmp_path, finished)


@pytest.mark.parametrize("back", [False, True])
def test_second_ctrl_c_while_weights_are_swapped_keeps_no_mixture(
    run_config: RunConfigMaker, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    """It comes between two copies of the evaluation of step 2: of the average, or of the weights put back."""
    owner, name = (Evaluator, "score") if back else (Evaluations, "score")
    score, copy, copies = getattr(owner, name), torch.Tensor.copy_, iter(range(9))

    def interrupted(self: torch.Tensor, *args: Any) -> torch.Tensor:
        if next(copies) == 1:
            monkeypatch.setattr(torch.Tensor, "copy_", copy)
            raise KeyboardInterrupt
        return copy(self, *args)

    def scored(self: Any, *args: Any) -> Any:
        found = score(self, *args) if back else None
        if (tmp_path / "metrics.jsonl").read_text().count('"train"') == 2:
            monkeypatch.setattr(torch.Tensor, "copy_", interrupted)
        return found if back else score(self, *args)

    config = run_config("trainer.steps=4", f"run.dir={tmp_path}", *SETTINGS)
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, scored)
        with pytest.raises(KeyboardInterrupt):
            train(config, resume="auto")
    assert [path.name for path in store.steps(tmp_path)] == ([] if back else ["step-00000002"])
    assert train(config, resume="auto") == 0
    assert_same_run(tmp_path, finished)


def test_unpack_inverts_pack_exactly(
    run_config: RunConfigMaker, randomise: Callable[..., None], tmp_path: Path
) -> None:
    config = run_config()
    policy = load_policy(config.model, 0)
    optimizer, progress = build_optimizer(config, policy), initial_progress(policy)
    randomise(policy)
    for parameter in policy.parameters("trained").values():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    progress.step, progress.best, progress.wandb_id = 12, 0.1 + 0.2, "abc"
    progress.best_step, progress.evaluated = 10, 11
    progress.ema = {name: torch.randn_like(value) for name, value in progress.ema.items()}
    progress.base_scores = {"a": [1 / 3, None]}
    state, lora, ema = pack(policy, optimizer, progress)
    folder = store.save(tmp_path, state, lora, ema, keep_last=1, best=False)

    other = load_policy(config.model, 1)
    other_optimizer = build_optimizer(config, other)
    basis = find_basis(config, [])
    back = restore(read_checkpoint(Ranks(), folder), tmp_path, other, other_optimizer, config, basis)
    for adapter in ("trained", "behaviour"):
        for name, parameter in other.parameters(adapter).items():  # type: ignore[arg-type]
            assert torch.equal(parameter, policy.parameters(adapter)[name])  # type: ignore[arg-type]
    assert all(torch.equal(back.ema[name], progress.ema[name]) for name in progress.ema)
    assert (back.best_step, back.best_metric, back.evaluated) == (10, "eval/composite", 11)
    assert (back.step, back.best, back.wandb_id, back.base_scores) == (
        12,
        0.1 + 0.2,
        "abc",
        {"a": [1 / 3, None]},
    )
    ours, theirs = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
    assert ours.keys() == theirs.keys()
    for place, moments in ours.items():
        assert moments.keys() == theirs[place].keys()
        assert all(torch.equal(value, theirs[place][name]) for name, value in moments.items())


def test_resumed_run_keeps_its_wandb_id(run_config: RunConfigMaker, tmp_path: Path) -> None:
    """A run that starts from another run's checkpoint gets a new id."""
    pytest.importorskip("wandb")
    settings = ("logging.wandb.mode=offline", "trainer.checkpoint_every=1")

    def ids(folder: Path) -> set[str]:
        """Return W&B's ids by its folders, named offline-run-TIME-ID (-1 follows a second one)."""
        return {path.name.split("-")[3] for path in (folder / "wandb").glob("offline-run-*")}

    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for steps in (1, 2):
        assert train(run_config(f"trainer.steps={steps}", *settings, f"run.dir={ours}"), resume="auto") == 0
    assert train(run_config("trainer.steps=3", *settings, f"run.dir={theirs}"), resume=str(ours)) == 0
    assert len(ids(ours)) == 1
    assert len(ids(theirs)) == 1
    assert ids(ours) != ids(theirs)
    state = json.loads((ours / "checkpoints" / "step-00000002" / "state.json").read_text())
    assert {state["info"]["wandb_id"]} == ids(ours)


def test_resume_of_a_finished_run_changes_nothing(
    run_config: RunConfigMaker, finished: Path, tmp_path: Path
) -> None:
    folder = copied(finished, tmp_path / "again")
    before = {
        file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.name != "log.txt"
    }
    assert train(run_config("trainer.steps=4", f"run.dir={folder}", *SETTINGS), resume="auto") == 0
    assert {file: file.read_bytes() for file in before} == before


def test_config_yaml_repeats_the_configuration(finished: Path, run_config: RunConfigMaker) -> None:
    config = run_config("trainer.steps=4", f"run.dir={finished}", *SETTINGS)
    assert compose([], str(finished / "config.yaml")) == config


def test_damaged_checkpoint_is_skipped_with_a_warning(
    run_config: RunConfigMaker, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copied(finished, tmp_path / "damaged")
    file = folder / "checkpoints" / "step-00000004" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    config = run_config("trainer.steps=4", f"run.dir={folder}", *SETTINGS)
    found = find_checkpoint(folder, config, "auto")
    assert found is not None
    assert found.name == "step-00000002"
    assert "step-00000004 is not usable and was passed over" in caplog.text
    assert train(config, resume="auto") == 0
    assert_same_run(folder, finished)
