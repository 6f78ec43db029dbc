"""Train and score one cell of the study: a method with a seed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from marble_cli.config.compose import compose
from marble_cli.evaluate.evaluate import held_out_prompts
from marble_cli.evaluate.score import make_evaluator
from marble_cli.evaluate.target import resolve_target
from marble_cli.evaluate.verdict import base_scores
from marble_cli.policy.load import load_policy
from marble_cli.rewards.scorer import open_scorer
from scripts.study.cells import BASE, BUDGET, CELLS, REWARDS, SEQUENTIAL, STEPS, WEIGHTED


def run_cell(directory: Path, name: str, seed: int) -> None:
    """Train and score a cell in `directory`; its scores are written last, whole or not at all."""
    folder = directory / f"{name}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cell.json").write_text(cell_settings(name))
    run, target = folder / "run", BASE
    overrides = (f"trainer.seed={seed}", *CELLS[name])
    if name == SEQUENTIAL:
        target = str(train_sequence(folder, overrides))
    elif name != BASE:
        if name == WEIGHTED:
            overrides += tuple(unit_weights(directory / f"{BASE}-{seed}" / "scores.json"))
        train(run, *overrides)
        target = str(run)
    partial = folder / "scores.partial"
    partial.write_text(json.dumps(score(folder, target, seed)))
    partial.rename(folder / "scores.json")


def train(folder: Path, *overrides: str, resume: str = "auto") -> None:
    """Run `marble train` with the study's budget; its output goes to a log file next to the run's folder.

    Raises:
        RuntimeError: the run did not finish.
    """
    command = [sys.executable, "-m", "marble_cli", "train", *BUDGET, *overrides, f"run.dir={folder}"]
    if not (folder / "checkpoints" / "latest").is_file():
        command += ["--resume", resume]
    folder.parent.mkdir(parents=True, exist_ok=True)
    log_file = folder.with_suffix(".log")
    with log_file.open("a") as log:
        code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    if code:
        raise RuntimeError(f"training {folder} failed with exit code {code}; see {log_file}")


def train_sequence(folder: Path, overrides: tuple[str, ...]) -> Path:
    """Train on the rewards one after another, each from the previous run's weights; return the last run."""
    resume = "auto"
    for place, name in enumerate(REWARDS, start=1):
        stage = folder / f"run-{place}-{name}"
        steps = STEPS * place // len(REWARDS)
        train(stage, *overrides, f"rewards=[{name}]", f"trainer.steps={steps}", resume=resume)
        resume = str(stage)
    return stage


def score(folder: Path, target: str, seed: int) -> dict[str, list[float | None]]:
    """Score the images of `target` for all held-out prompts.

    Returns:
        By reward, one score per image; None where the reward does not apply.
    """
    config = compose([*BUDGET, f"trainer.seed={seed}", f"run.dir={folder}"])
    policy, chosen = load_policy(config.model, seed), resolve_target(target)
    chosen.put_into(policy)
    with open_scorer(config.rewards, str(policy.device)) as scorer:
        evaluator = make_evaluator(config, policy, scorer, held_out_prompts(config))
        return base_scores(evaluator.score(chosen.adapter))


def unit_weights(scores: Path) -> list[str]:
    """Return overrides that scale every reward to unit standard deviation on the base model.

    This gives the weighted sum a fair start.
    """
    rows = json.loads(scores.read_text())
    deviations = {name: np.std([v for v in rows[name] if v is not None]) for name in REWARDS}
    return [f"rewards.{name}.weight={1 / deviation:.4g}" for name, deviation in deviations.items()]


def cell_settings(name: str) -> str:
    """Return a cell's overrides as JSON; kept with its result, so that changed settings are noticed."""
    return json.dumps([*BUDGET, *CELLS[name]])


def is_done(folder: Path, name: str) -> bool:
    """Tell whether the cell has been scored.

    Raises:
        SystemExit: the folder holds a cell of this name with other settings.
    """
    if not (folder / "cell.json").is_file():
        return False
    if (folder / "cell.json").read_text() != cell_settings(name):
        raise SystemExit(
            f"{folder} was made with other settings than {name} has now. Move it away, or use --directory."
        )
    return (folder / "scores.json").is_file()
