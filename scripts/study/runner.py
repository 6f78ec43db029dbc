"""Train and score one cell of the study, and read its scores back."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from marble_cli.evaluate.evaluate import held_out_prompts
from marble_cli.evaluate.score import make_evaluator
from marble_cli.evaluate.target import Models, resolve_target
from marble_cli.metrics.history import read_history
from marble_cli.rewards.scorer import open_scorer
from scripts.study.cells import (
    BASE,
    BUDGETS,
    COMMON,
    JUDGED_PROMPTS,
    MERGES,
    REWARDS,
    SEQUENTIAL,
    SPECIALISTS,
    TUNING_PROMPTS,
    TUNING_SEED,
    WEIGHTED,
    Cell,
)
from scripts.study.choose import best_rate, tuning_curve
from scripts.study.conduct import conduct
from scripts.study.scores import Folders, Scores, base_name

UNWATCHED = ("~eval_rewards", "trainer.on_hacking=warn")  # scored rewards are those of the study


def run_base(folders: Folders, seed: int) -> None:
    """Score the base model with the noise of a seed."""
    folder = folders.runs / base_name(seed)
    Scores(score(folder, BASE, seed), {}).write(folders.result(base_name(seed)))


def run_cell(folders: Folders, cell: Cell) -> None:
    """Train and score a cell; its scores are written last."""
    folder = folders.runs / cell.name
    if cell.method in MERGES:
        merged = merge(folders, cell)
        Scores(score(folder, str(merged), cell.seed), {}).write(folders.result(cell.name))
        return
    overrides = cell.overrides
    if cell.method in WEIGHTED:
        base = Scores.read(folders.result(base_name(TUNING_SEED)))
        overrides += unit_weights(base, WEIGHTED[cell.method])
    if cell.method == SEQUENTIAL:
        run = train_sequence(folder, overrides, BUDGETS[cell.budget].steps)
    else:
        run = train(folder / "run", *overrides)
    facts = {"overrides": overrides, **conduct(read_history(run).train)}
    Scores(score(folder, str(run), cell.seed), facts).write(folders.result(cell.name))


def merge(folders: Folders, cell: Cell) -> Path:
    """Merge the specialists of the same budget and seed, each at its best learning rate; return the LoRA."""
    output, runs = folders.runs / cell.name / "merged", []
    for method in SPECIALISTS:
        rate = best_rate(tuning_curve(folders, cell.budget, method))
        runs.append(str(folders.runs / Cell(cell.budget, method, rate, cell.seed).name / "run"))
    weights = ",".join([str(cell.rate)] * len(runs))
    if not output.is_dir():
        marble("merge", *runs, str(output), "--weights", weights, "--method", MERGES[cell.method], log=output)
    return output


def train(folder: Path, *overrides: str, resume: str = "auto", ends: tuple[int, ...] = (0,)) -> Path:
    """Run `marble train` and return the run's folder.

    Args:
        folder: of the run.
        overrides: of `marble train`.
        resume: what a new run starts from.
        ends: exit codes of a run that ended as it may.

    Raises:
        RuntimeError: the run did not finish.
    """
    started = (folder / "checkpoints" / "latest").is_file()
    resuming = () if started else ("--resume", resume)
    marble("train", *overrides, f"run.dir={folder}", *resuming, log=folder, ends=ends)
    return folder


def marble(command: str, *arguments: str, log: Path, ends: tuple[int, ...] = (0,)) -> None:
    """Run a command of marble; its output goes to a file that is named as `log`, with the suffix .log.

    Raises:
        RuntimeError: the command failed.
    """
    file = log.with_suffix(".log")
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as output:
        words = [sys.executable, "-m", "marble_cli", command, *arguments]
        code = subprocess.run(words, stdout=output, stderr=output, check=False).returncode
    if code not in ends:
        raise RuntimeError(f"marble {command} {log} failed with exit code {code}; see {file}")


def train_sequence(folder: Path, overrides: tuple[str, ...], steps: int) -> Path:
    """Train on the rewards one after another, each from the previous run's weights; return the last run."""
    resume = "auto"
    for place, name in enumerate(REWARDS, start=1):
        stage = folder / f"run-{place}-{name}"
        until = steps * place // len(REWARDS)
        train(stage, *overrides, f"rewards=[{name}]", f"trainer.steps={until}", resume=resume)
        resume = str(stage)
    return stage


def score(folder: Path, target: str, seed: int) -> np.ndarray:
    """Score the images of `target`: for held-out prompts, or for training prompts with a tuning seed.

    Returns:
        [K, n] float32; NaN where a reward does not apply.
    """
    drawn = resolve_target(target)
    rewards = f"rewards=[{','.join(REWARDS)}]"  # a specialist's run has one
    common = COMMON if drawn.config is None else ()
    overrides = [*common, *UNWATCHED, rewards, *prompt_overrides(seed)]
    overrides += [f"trainer.seed={seed}", f"run.dir={folder}"]
    models = Models(overrides, [drawn])
    (held,) = models.targets
    policy = models.hold(held)
    with open_scorer(models.config.rewards, str(policy.device)) as scorer:
        evaluator = make_evaluator(models.config, policy, scorer, held_out_prompts(models.config))
        scores = evaluator.score(held.adapter).scores
    return np.where(scores.applicable, scores.values, np.nan).astype(np.float32)


def prompt_overrides(seed: int) -> list[str]:
    """Return overrides that choose the prompts which a seed is scored on."""
    if seed != TUNING_SEED:
        return [f"trainer.eval_prompts={JUDGED_PROMPTS}"]
    files = [f"data.sources.{name}.test={name}/train.jsonl" for name in ("general", "text", "compositional")]
    return [f"trainer.eval_prompts={TUNING_PROMPTS}", *files]


def unit_weights(base: Scores, trained: tuple[str, ...]) -> tuple[str, ...]:
    """Return overrides that scale every trained reward to unit standard deviation on the base model.

    This gives the weighted sum a fair start.
    """
    deviations = dict(zip(REWARDS, np.nanstd(base.values, axis=1), strict=True))
    return tuple(f"rewards.{name}.weight={1 / deviations[name]:.4g}" for name in trained)


def main(arguments: list[str]) -> None:
    """Run a cell: RUNS RESULTS base SEED, or RUNS RESULTS BUDGET METHOD RATE SEED."""
    folders = Folders(Path(arguments[0]), Path(arguments[1]))
    match arguments[2:]:
        case ["base", seed]:
            run_base(folders, int(seed))
        case [budget, method, rate, seed]:
            run_cell(folders, Cell(budget, method, float(rate), int(seed)))


if __name__ == "__main__":
    main(sys.argv[1:])
