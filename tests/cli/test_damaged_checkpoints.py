"""Damaged and foreign checkpoints are refused by `marble train` and the commands that evaluate."""

import itertools
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from marble_cli.config.compose import dump
from marble_cli.config.schema import RunConfig
from marble_cli.distributed.ranks import Ranks
from marble_cli.errors import CheckpointError
from marble_cli.metrics.jsonl import read_rows
from marble_cli.policy.load import load_policy
from marble_cli.run.basis import find_basis
from marble_cli.run.build import build_optimizer
from marble_cli.run.resume import resume_from
from marble_cli.run.train import train
from tests.checkpoint.damage import COMMON, relist, rewrite

RunConfigMaker = Callable[..., RunConfig]

SETTINGS = ("trainer.steps=3", "trainer.checkpoint_every=1", "trainer.keep_last=9")
LAST = Path("checkpoints") / "step-00000003"


def words(text: str) -> str:
    """Without the terminal's line breaks."""
    return " ".join(text.split())


@pytest.fixture(scope="module")
def finished(run_config: RunConfigMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    assert train(run_config(*SETTINGS, f"run.dir={folder}"), resume="auto") == 0
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    config = (folder / "config.yaml").read_text()
    assert f"dir: {finished}\n" in config
    (folder / "config.yaml").write_text(config.replace(f"dir: {finished}\n", f"dir: {folder}\n"))
    return folder


@pytest.fixture(scope="module")
def loaded(run_config: RunConfigMaker) -> Any:
    """A policy whose weights each resume sets anew."""
    return load_policy(run_config().model, seed=0)


@pytest.fixture(scope="module")
def foreign(
    run_config: RunConfigMaker, pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The last checkpoints of runs on another model of the same shapes, and with other LoRA settings."""
    root = tmp_path_factory.mktemp("foreign")
    short = ("rollout.groups=1", "rollout.steps=1", "trainer.checkpoint_every=3")
    shutil.copytree(pipeline_folder, root / "model")
    (file,) = (root / "model" / "transformer").glob("*.safetensors")
    weights = load_file(file)
    weights["proj_out.weight"] += 0.1
    save_file(weights, file, {"format": "pt"})
    others = {
        "model": f"model.path={root / 'model'}",
        "alpha": "model.lora.alpha=7",
        "rank": "model.lora.rank=3",
        "targets": "model.lora.target_modules=[to_q,to_k,add_k_proj,to_out.0]",
    }
    for name, override in others.items():
        config = run_config(*SETTINGS, *short, override, f"run.dir={root / name}")
        assert train(config, resume="auto") == 0
    return {name: root / name / LAST for name in others}


def assert_refused_and_passed_over(marble: Callable[..., Any], run: Path, said: str, finished: Path) -> None:
    """`eval` names the fault and stops; `train` names it and repeats the last step from the one before."""
    judged = marble("eval", run / LAST, "trainer.eval_prompts=1")
    assert judged.code == 2
    assert said in words(judged.err)
    assert "Traceback" not in judged.err
    continued = marble("train", "--config-name", run / "config.yaml")
    told = words(continued.out + continued.err)
    assert continued.code == 0, told
    assert "step-00000003 is not usable and was passed over" in told
    assert said in words((run / "log.txt").read_text()) + told
    assert [row["step"] for row in read_rows(run / "metrics.jsonl")] == [1, 2, 3]
    for name in ("lora", "ema"):
        file = LAST / name / "pytorch_lora_weights.safetensors"
        assert (run / file).read_bytes() == (finished / file).read_bytes()
    assert (run / "checkpoints" / "abandoned-step-00000003").is_dir()


@pytest.mark.parametrize("kind", ["truncated", "pickle"])
def test_a_damaged_checkpoint(marble: Callable[..., Any], run: Path, finished: Path, kind: str) -> None:
    """tests/checkpoint has all kinds of damage, which the store alone tells apart."""
    harm, said = COMMON[kind]
    harm(run / LAST)
    assert_refused_and_passed_over(marble, run, said, finished)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("model", "belongs to another model"),
        ("alpha", "other LoRA settings: model.lora.alpha was 7 and is 6 here"),
        ("rank", "other LoRA settings: model.lora.rank was 3 and is 2 here"),
        ("targets", "other LoRA settings: model.lora.target_modules was"),
    ],
)
def test_a_foreign_checkpoint(
    marble: Callable[..., Any], run: Path, finished: Path, foreign: dict[str, Path], kind: str, said: str
) -> None:
    shutil.rmtree(run / LAST)
    shutil.copytree(foreign[kind], run / LAST)
    assert_refused_and_passed_over(marble, run, said, finished)


def test_a_foreign_checkpoint_that_is_named_is_refused(
    run_config: RunConfigMaker, marble: Callable[..., Any], foreign: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(dump(run_config(*SETTINGS, f"run.dir={tmp_path / 'mine'}")))
    asked = marble("train", "--config-name", tmp_path / "mine.yaml", "--resume", foreign["model"])
    assert asked.code == 2
    assert "belongs to another model" in words(asked.err)
    assert not (tmp_path / "mine" / "checkpoints").exists()


def spoil(key: str, value: Any) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda content: content["info"].update({key: value}))


def drop(key: str) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda content: content["info"].pop(key))


def without_moment(folder: Path) -> None:
    moments = load_file(folder / "optimizer.safetensors")
    moments.pop(sorted(moments)[0])
    save_file(moments, folder / "optimizer.safetensors")
    relist(folder, "optimizer.safetensors")


def negative_variance(folder: Path) -> None:
    moments = load_file(folder / "optimizer.safetensors")
    name = next(name for name in moments if name.endswith("exp_avg_sq"))
    moments[name] -= 1
    save_file(moments, folder / "optimizer.safetensors")
    relist(folder, "optimizer.safetensors")


def huge_behaviour(folder: Path) -> None:
    weights = load_file(folder / "behaviour.safetensors")
    name = sorted(weights)[0]
    weights[name] = torch.zeros(1000, 1000)
    save_file(weights, folder / "behaviour.safetensors")
    relist(folder, "behaviour.safetensors")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (spoil("best", "0.3"), "best is '0.3'. Expected a number or null"),
        (spoil("best", True), "best is 'True'"),
        (spoil("best_step", -1), "best_step is '-1'"),
        (spoil("evaluated", 1.5), "evaluated is '1.5'"),
        (drop("evaluated"), "evaluated is 'None'"),
        (spoil("wandb_id", "../../../home"), "wandb_id is '../../../home'. Expected up to 128 letters"),
        (spoil("base_scores", {"colorfulness": ["0.1"]}), "base_scores is"),
        (spoil("base_scores", []), "base_scores is"),
        (spoil("basis", "abc"), "basis is 'abc'. Expected what base scores depend on, or null"),
        (spoil("cache", {"alpha": [0.5], "norms": [1.0, 2.0], "unit": True}), "cache is"),
        (spoil("cache", {"alpha": [0.5, 0.5], "norms": [1.0, -2.0], "unit": True}), "cache is"),
        (spoil("cache", {"alpha": [0.5, 0.5], "norms": None, "unit": True}), "cache is"),
        (spoil("cache", {"alpha": None, "norms": None, "unit": True, "interval": 0, "due": 3}), "cache is"),
        (spoil("cache", {"alpha": [1.0], "norms": [1.0], "unit": True}), "has shares of 1 rewards"),
        (spoil("cache", {"alpha": [0.5], "norms": [1.0], "unit": True, "guards": 3}), "cache is"),
        (spoil("cache", 10**30), "cache is"),
        (without_moment, "optimizer.safetensors of the checkpoint of step 3 does not fit"),
        (negative_variance, "is below 0"),
        (huge_behaviour, "behaviour.safetensors of the checkpoint of step 3 does not fit"),
    ],
)
def test_an_impossible_state_is_refused(
    run_config: RunConfigMaker,
    loaded: Any,
    run: Path,
    caplog: pytest.LogCaptureFixture,
    harm: Callable[[Path], None],
    said: str,
) -> None:
    """Signed, so that no checksum tells; an older checkpoint takes its place, a named one is refused."""
    harm(run / LAST)
    config = run_config(*SETTINGS, f"run.dir={run}")
    optimizer, basis = build_optimizer(config, loaded), find_basis(config, [])
    with pytest.raises(CheckpointError, match=re.escape(said)):
        resume_from(Ranks(), run, run / LAST, loaded, optimizer, config, basis, named=True)
    checkpoint, progress = resume_from(
        Ranks(), run, run / LAST, loaded, optimizer, config, basis, named=False
    )
    assert checkpoint == run / "checkpoints" / "step-00000002"
    assert progress.step == 2
    assert "step-00000003 is not usable and was passed over" in caplog.text


def test_with_no_valid_checkpoint_nothing_is_started_over(marble: Callable[..., Any], run: Path) -> None:
    for folder in (run / "checkpoints").glob("step-*"):
        COMMON["newer"][0](folder)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    refused = marble("train", "--config-name", run / "config.yaml")
    assert refused.code == 2
    assert "holds 3 checkpoints and none is valid. Nothing was changed." in words(refused.err)
    assert "Update marble to read it" in words(refused.err)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_no_command_takes_a_pickle(marble: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    """As a file and as a folder; the names take turns, as no command looks at them."""
    names = itertools.cycle(("model.ckpt", "pytorch_model.bin", "last.pt"))
    train_to = ("train", "--config-name", run / "config.yaml", f"run.dir={tmp_path / 'new'}")
    for command in (
        (*train_to, "--resume", "GIVEN"),
        ("eval", "GIVEN"),
        ("generate", "GIVEN", "--prompt", "a cup"),
        ("export", "GIVEN", tmp_path / "lora"),
        ("eval", run, "--against", "GIVEN"),
    ):
        for alone in (True, False):
            file = Path(tempfile.mkdtemp(dir=tmp_path)) / next(names)
            torch.save({"weight": torch.ones(2)}, file)
            given = file if alone else file.parent
            refused = marble(*(given if word == "GIVEN" else word for word in command))
            assert refused.code == 2
            assert f"{file.name} is a pickled file. marble never unpickles" in words(refused.err)
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "lora").exists()


@pytest.mark.parametrize("name", ["checkpoints", "log.txt", "metrics.jsonl", "samples", "config.yaml"])
def test_a_run_does_not_write_through_links(
    marble: Callable[..., Any], run: Path, tmp_path: Path, name: str
) -> None:
    outside = tmp_path / "outside" / name
    outside.parent.mkdir()
    if (run / name).exists():
        shutil.move(run / name, outside)
    (run / name).symlink_to(outside)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    config = tmp_path / "copy.yaml"
    shutil.copy(run / "config.yaml", config)
    refused = marble("train", "--config-name", config, "trainer.steps=4")
    assert refused.code == 2
    assert f"{run / name} is a link that leads out of the folder" in words(refused.err).replace("- ", "-")
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([*before, "copy.yaml"])


def test_a_whole_run_may_lie_elsewhere(marble: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(run)
    continued = marble(
        "train", "--config-name", run / "config.yaml", f"run.dir={tmp_path / 'alias'}", "trainer.steps=4"
    )
    assert continued.code == 0, continued.err
    state = json.loads((run / "checkpoints" / "step-00000004" / "state.json").read_text())
    assert state["step"] == 4
