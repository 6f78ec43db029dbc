"""What a push writes: a LoRA that draws as its run, and nothing that names the machine or its user."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from marble_cli.checkpoint import store
from marble_cli.config.compose import compose, load_resolved
from marble_cli.config.schema import RunConfig
from marble_cli.errors import CheckpointError, RequestError
from marble_cli.evaluate.generate import generate
from marble_cli.push.folder import ENTRIES, write_folder
from marble_cli.seeds import noise
from tests.push.conftest import REPO
from tests.random_runs import write_random_run

USER, HOST, SECRET = "jane-doe", "turing.example.org", "hf_" + "s3cr3t" * 6


def code_on_card(folder: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return str(code)


def drawn_by_card(folder: Path, latents: Tensor) -> Tensor:
    """Run the code of a card as it is, but from given noise; return the picture [3, H, W], 0 to 255."""
    Path("me").mkdir()
    Path(REPO).symlink_to(folder)
    names: dict[str, Any] = {"latents": latents}
    exec(code_on_card(folder).replace(").images[0]", ", latents=latents).images[0]"), names)
    assert names["pipeline"].get_active_adapters()
    return torch.from_numpy(np.array(names["image"])).permute(2, 0, 1).float()


def drawn_by_marble(target: str, folder: Path, output: Path, *more: str) -> Tensor:
    """Draw the prompt of a card from the noise of seed 7."""
    (prompt,) = re.findall(r"image = pipeline\((\".*?\"),", code_on_card(folder))
    (file,) = generate(target, [json.loads(prompt)], output, 7, ["rollout.solver=euler", *more])
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float()


def test_code_on_the_card_draws_what_the_run_draws(
    trained: Path,
    pushed: Path,
    pipeline_folder: Path,
    base_overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("path/to").mkdir(parents=True)
    Path("path/to", pipeline_folder.name).symlink_to(pipeline_folder)
    ours = drawn_by_marble(str(trained), pushed, tmp_path / "ours")
    base = drawn_by_marble("base", pushed, tmp_path / "base", *base_overrides)
    drawn = drawn_by_card(pushed, noise(7, "generate", 0, [0], (4, 4, 4)))
    assert (drawn - ours).abs().max() <= 1
    assert (drawn - base).abs().mean() > 2


def test_code_on_the_card_of_the_embedded_model_needs_no_folder(
    randomise: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("~preset", "model.device=cpu", "rollout.steps=3", f"run.dir={tmp_path / 'run'}")
    write_random_run(compose(settings), lambda policy: randomise(policy, scale=0.05))
    folder = write_folder(str(tmp_path / "run"), REPO, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    ours = drawn_by_marble(str(tmp_path / "run"), folder, tmp_path / "ours")
    assert (drawn_by_card(folder, noise(7, "generate", 0, [0], (8, 8, 8))) - ours).abs().max() <= 1
    assert "nothing is known of what training changed" in (folder / "README.md").read_text()


def test_the_folder_holds_these_files(pushed: Path) -> None:
    assert {path.name for path in pushed.iterdir()} == set(ENTRIES)
    names = sorted(path.name for path in (pushed / "images").iterdir())
    assert names == [f"{index:05d}-{when}.webp" for index in range(6) for when in ("after", "before")]


def copied(run: Path, parent: Path) -> Path:
    """Copy a run below `parent`, for a test that changes it."""
    folder = parent / run.name
    for file in run.rglob("*"):
        if file.is_file():
            (folder / file.relative_to(run)).parent.mkdir(parents=True, exist_ok=True)
            (folder / file.relative_to(run)).write_bytes(file.read_bytes())
    return folder


def test_no_file_names_machine_user_paths_or_secrets(
    trained: Path, pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home" / USER
    run = copied(trained, home / "runs")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr("socket.gethostname", lambda: HOST)
    monkeypatch.setattr("getpass.getuser", lambda: USER)
    tree: Any = OmegaConf.load(run / "config.yaml")
    tree.run = {"name": f"of {USER} on turing, {SECRET}", "dir": str(run)}
    tree.model.embedding_cache = f"{home}/cache"
    tree.model.lora.init = f"{home}/a b/lora.safetensors"
    tree.data.sources.general.metadata = {"by": USER, "file": f"file://{home}/x"}
    tree.logging = {"wandb": {"mode": "online", "project": "p", "entity": USER}, "images_every": 1}
    tree.launcher = {"name": "slurm", "nproc": 1, "account": USER, "setup": [f". {home}/bin/activate"]}
    served = {"plugin": "ocr", "weight": 1.0, "url": f"http://{HOST}:8600", "token_env": "MINE"}
    tree.eval_rewards = {"seen": served, "kept": {"plugin": "colorfulness", "options": {}}}
    (run / "config.yaml").write_text(OmegaConf.to_yaml(tree))
    with (run / "log.txt").open("a") as log:
        for level in ("INFO", "WARNING", "ERROR"):
            log.write(f"2026-01-02 03:04:07,678 {level} node17 cannot read {home}/x as {USER}: {SECRET}\n")
        log.write(f"2026-01-02 03:04:08,678 INFO reward ocr, retry 1 of 2: no answer of http://{HOST}:8600\n")
    rewards = {"colorfulness": {"n": 1, "mean": 2.0, "difference": 1.0, "interval": [0.5, 1.5]}}
    own = {"target": "first/step-00000002", "prompts": 1, "rewards": rewards}
    against = [{"against": f"{home}/loras/x.safetensors", "rewards": rewards}]
    (run / "report.json").write_text(json.dumps({**own, "comparisons": against}))
    folder = write_folder(str(run), REPO, tmp_path / "out")
    files = [file for file in folder.rglob("*") if file.is_file()]
    names = (str(home), str(tmp_path), str(run), str(pipeline_folder.parent), HOST, "turing", USER, SECRET)
    for file in files:
        content = file.read_bytes()
        assert [name for name in (*names, "node17", "s3cr3t") if name.encode() in content] == [], file
        assert not any(name in str(file.relative_to(folder)) for name in names)
    assert len(files) == 4 + 12
    card, report = (folder / "README.md").read_text(), (folder / "report.html").read_text()
    assert "against …/x.safetensors" in card
    assert "ocr, which is not installed" in card or "ocr of marble-reward-ocr" in card
    assert "a message whose text is not published" in report
    shown = load_resolved(folder / "config.yaml")
    assert (shown.launcher.account, shown.logging.wandb.entity, shown.logging.trackers) == (None, None, [])
    assert shown.trainer == load_resolved(run / "config.yaml").trainer


def test_a_user_called_like_a_choice_changes_no_choice(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "marble")
    folder = write_folder(str(trained), REPO, tmp_path)
    assert load_resolved(folder / "config.yaml").balance == load_resolved(trained / "config.yaml").balance


def test_an_earlier_checkpoint_is_shown_by_its_own_evaluation(trained: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    changes = {
        row["step"]: f"{row['reward/colorfulness/change']:+.3g}" for row in rows if row["phase"] == "eval"
    }
    assert len({change for step, change in changes.items() if step}) == 2
    for step in (1, 2):
        checkpoint = trained / "checkpoints" / f"step-{step:08d}"
        card = (write_folder(str(checkpoint), REPO, tmp_path / str(step)) / "README.md").read_text()
        assert f"before training and after step {step}:" in card
        shown = changes[step].replace("-", "−")
        assert f"| {shown} (" in card
        assert ("## Pictures" in card) == (step == 2)  # those of step 1 are not kept


def test_a_second_push_replaces_the_first_and_spares_other_files(trained: Path, tmp_path: Path) -> None:
    first = write_folder(str(trained), REPO, tmp_path / "out")
    before = {file: file.read_bytes() for file in first.rglob("*") if file.is_file()}
    (first / "images" / "old.webp").write_bytes(b"of another push")
    write_folder(str(trained), REPO, first)
    assert {file: file.read_bytes() for file in first.rglob("*") if file.is_file()} == before
    (first / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match=r"holds notes\.txt, which is not of a push"):
        write_folder(str(trained), REPO, first)
    assert (first / "notes.txt").read_text() == "mine"
    (tmp_path / "README.md").write_text("of another project")
    (first / "notes.txt").unlink()
    first.rename(tmp_path.parent / f"{tmp_path.name}-out")
    with pytest.raises(RequestError, match=r"holds README\.md, which is not of a push"):
        write_folder(str(trained), REPO, tmp_path)


def test_what_is_no_lora_of_a_run_is_refused(
    run_config: Callable[..., RunConfig], randomise: Callable[..., None], trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(RequestError, match="push base: the base model has no trained weights"):
        write_folder("base", REPO, out)
    with pytest.raises(CheckpointError, match="neither a checkpoint"):
        write_folder(str(tmp_path / "nothing"), REPO, out)
    with pytest.raises(CheckpointError, match="For a LoRA from elsewhere: marble export, then hf upload"):
        write_folder(str(next(trained.rglob("*.safetensors"))), REPO, out)
    config = run_config("model.train=full", f"run.dir={tmp_path / 'full'}")
    write_random_run(config, lambda policy: randomise(policy, scale=0.01))
    with pytest.raises(RequestError, match="holds a whole transformer, and marble push publishes LoRAs"):
        write_folder(str(tmp_path / "full"), REPO, out)
    without = copied(trained, tmp_path)
    os.unlink(without / "config.yaml")
    with pytest.raises(CheckpointError, match=r"config\.yaml is missing"):
        write_folder(str(without), REPO, out)
    assert store.resolve(str(without))
    assert not out.exists()
