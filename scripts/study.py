"""Every balance against every other on the embedded model, at equal image budgets.

    python scripts/study.py [--directory runs/study] [--seeds 0 1 2] [--workers 2] [--cells NAME ...]

Each cell (a method and a seed) is trained and judged once: what is done is skipped, an unfinished cell goes on from its last
checkpoint. `scripts/study_report.py` turns the results into docs/results/study.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

REWARDS = ("clipscore", "colorfulness", "compressibility", "ocr", "objects")
STEPS = 30
JUDGED_PROMPTS = 300  # held-out prompts a source
BUDGET = (
    "preset=tiny", "rollout.groups=12", "rollout.group_size=12", f"trainer.steps={STEPS}", "trainer.eval_every=0",
    "trainer.checkpoint_every=6", "logging.wandb.mode=disabled", f"trainer.eval_prompts={JUDGED_PROMPTS}",
)  # fmt: skip
AMORTISED = ("balance.mode=amortized", "balance.refresh_every=5", "balance.refresh_fraction=1")
BASE, SEQUENTIAL, WEIGHTED = "base", "sequential", "weighted_sum"
PAPER, FLOOR = "balance.norm_priority=0", "balance.floor=0.12"
METHODS: dict[str, tuple[str, ...]] = {
    BASE: (),
    "marble": ("balance.refresh_fraction=0.5",),  # of two micro-batches one
    "marble_whole": ("balance.refresh_fraction=1",),
    "marble_amortised": AMORTISED,
    "marble_advantage": (*AMORTISED, "balance.amortize=advantage"),
    "paper": (*AMORTISED, PAPER),
    "paper_floor": (*AMORTISED, PAPER, FLOOR),
    "paper_floor_whole": ("balance.refresh_fraction=1", PAPER, FLOOR),
    "published": (
        *AMORTISED, PAPER, "balance.amortize=advantage", "balance.refresh_fraction=0.001", "balance.shared_term=inside",
    ),
    "output_space": ("balance=output_space", "balance.mode=output_space", "balance.refresh_every=5", PAPER, FLOOR),
    "upgrad": ("balance=torchjd:UPGrad", *AMORTISED),
    "equal": ("balance=equal", *AMORTISED),
    WEIGHTED: ("balance=weighted_sum", *AMORTISED),
    "advantage_sum": ("balance=advantage_sum", *AMORTISED),
    SEQUENTIAL: AMORTISED,
    **{f"only_{name}": (f"rewards=[{name}]", *AMORTISED) for name in REWARDS},
}  # fmt: skip
ABLATIONS: dict[str, tuple[str, ...]] = {
    "warmup_5": (*AMORTISED, "balance.warmup=5"),
    "refresh_10": (*AMORTISED, "balance.refresh_every=10"),
    "refresh_50": (*AMORTISED, "balance.refresh_every=50"),
    "rho_0": (*AMORTISED, "balance.ema=0"),
    "rho_0.5": (*AMORTISED, "balance.ema=0.5"),
    "rho_0.9": (*AMORTISED, "balance.ema=0.9"),
    "shared_inside": (*AMORTISED, "balance.shared_term=inside"),
    "fraction_0.5": (*AMORTISED, "balance.refresh_fraction=0.5"),
    "norm_priority_0.5": (*AMORTISED, "balance.norm_priority=0.5"),
}
CELLS = METHODS | ABLATIONS


def train(folder: Path, *overrides: str, resume: str = "auto") -> None:
    """One run of `marble train`; its output goes to log files beside the run.

    Raises:
        RuntimeError: it did not finish.
    """
    command = [sys.executable, "-m", "marble_cli", "train", *BUDGET, *overrides, f"run.dir={folder}"]
    if not (folder / "checkpoints" / "latest").is_file():
        command += ["--resume", resume]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("a") as log:
        code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    if code:
        raise RuntimeError(f"{folder} ended with {code}; {folder.with_suffix('.log')} says why")


def judge(folder: Path, target: str, seed: int) -> dict[str, list[float | None]]:
    """Scores of every held-out image by reward, null where the reward does not apply."""
    from marble_cli.config.compose import compose
    from marble_cli.evaluate.evaluate import draw
    from marble_cli.evaluate.target import resolve_target
    from marble_cli.evaluate.verdict import base_scores
    from marble_cli.policy.load import load_policy
    from marble_cli.rewards.scorer import open_scorer

    config = compose([*BUDGET, f"trainer.seed={seed}", f"run.dir={folder}"])
    policy = load_policy(config.model, seed)
    with open_scorer(config.rewards, str(policy.device)) as scorer:
        return base_scores(draw(resolve_target(target), policy, config, scorer))


def run_cell(directory: Path, name: str, seed: int) -> None:
    """Train and judge one cell; the result is written last, and whole."""
    folder = directory / f"{name}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cell.json").write_text(asked(name))
    run, target = folder / "run", BASE
    common = (f"trainer.seed={seed}", *CELLS[name])
    if name == SEQUENTIAL:
        target = str(sequence(folder, common))
    elif name != BASE:
        if name == WEIGHTED:
            common += tuple(unit_weights(directory / f"{BASE}-{seed}" / "scores.json"))
        train(run, *common)
        target = str(run)
    partial = folder / "scores.partial"
    partial.write_text(json.dumps(judge(folder, target, seed)))
    partial.rename(folder / "scores.json")


def asked(name: str) -> str:
    """What a cell is, kept beside its result, so that one of that name and of other settings is not taken for it."""
    return json.dumps([*BUDGET, *CELLS[name]])


def is_done(folder: Path, name: str) -> bool:
    """Whether the cell is judged.

    Raises:
        SystemExit: the folder is of a cell with other settings.
    """
    if not (folder / "cell.json").is_file():
        return False
    if (folder / "cell.json").read_text() != asked(name):
        raise SystemExit(
            f"{folder} was made with other settings than {name} has now. Move it away, or use --directory."
        )
    return (folder / "scores.json").is_file()


def sequence(folder: Path, common: tuple[str, ...]) -> Path:
    """Train on one reward after another, each from where the last one ended; returns the last run."""
    resume = "auto"
    for place, name in enumerate(REWARDS, start=1):
        stage = folder / f"run-{place}-{name}"
        steps = STEPS * place // len(REWARDS)
        train(stage, *common, f"rewards=[{name}]", f"trainer.steps={steps}", resume=resume)
        resume = str(stage)
    return stage


def unit_weights(scores: Path) -> list[str]:
    """Weights that bring every reward to unit standard deviation on the base model: a fair start for a sum."""
    rows = json.loads(scores.read_text())
    deviations = {name: np.std([v for v in rows[name] if v is not None]) for name in REWARDS}
    return [f"rewards.{name}.weight={1 / deviation:.4g}" for name, deviation in deviations.items()]


def main(directory: Path, seeds: list[int], workers: int, names: list[str]) -> None:
    todo = [
        (name, seed) for name in names for seed in seeds if not is_done(directory / f"{name}-{seed}", name)
    ]  # fmt: skip
    print(f"{len(todo)} cells to do, {len(names) * len(seeds) - len(todo)} done", flush=True)
    threads = max(1, (os.cpu_count() or 1) // workers)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}

    def one(cell: tuple[str, int]) -> None:
        arguments = ["--directory", str(directory), "--run-cell", cell[0], "--seeds", str(cell[1])]
        code = subprocess.run([sys.executable, __file__, *arguments], env=environment, check=False).returncode
        print(f"{cell[0]}, seed {cell[1]}: {'done' if code == 0 else f'failed with {code}'}", flush=True)

    with ThreadPoolExecutor(workers) as pool:
        base = [cell for cell in todo if cell[0] == BASE]  # the weighted sum asks for their results
        list(pool.map(one, base))
        list(pool.map(one, [cell for cell in todo if cell not in base]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directory", type=Path, default=Path("runs/study"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="cells at a time")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), metavar="NAME")
    parser.add_argument("--run-cell", choices=CELLS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run_cell:
        run_cell(options.directory, options.run_cell, options.seeds[0])
    else:
        main(options.directory, options.seeds, options.workers, options.cells)
