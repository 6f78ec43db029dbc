"""Let a reward be hacked, and compare what the answers to the alarm do.

    python -m scripts.study.hacking [--seeds 0 1 2] [--runs runs/study]

Trains the embedded model on colorfulness alone while clipscore and objects are watched, with
`trainer.on_hacking=warn`, `stop` and `rollback`, and with the two as guards: with weights that are cached, as
the preset does, at every step, and with margins. At the study's short budget. Finished runs are skipped,
unfinished ones resume. `python -m scripts.study.hacking_report` turns the results into tables and pictures.
"""

import argparse
import sys
from pathlib import Path

from marble_cli.checkpoint.step_folders import read_pointer
from marble_cli.metrics.history import read_metrics
from scripts.study.__main__ import RESULTS
from scripts.study.cells import BUDGETS, EVERY_STEP, STEPWISE
from scripts.study.runner import marble, score, train
from scripts.study.scores import Folders, Scores

TRAINED, WATCHED = "colorfulness", ("clipscore", "objects")
WATCHING = (f"rewards=[{TRAINED}]", f"+rewards@eval_rewards=[{','.join(WATCHED)}]")
GUARDING = (
    f"rewards=[{','.join((TRAINED, *WATCHED))}]",
    *(f"rewards.{name}.role=guard" for name in WATCHED),
)
EACH_STEP = (STEPWISE, *EVERY_STEP)
MARGINS = tuple(f"rewards.{name}.margin=0.2" for name in WATCHED)
ANSWERS = {
    "warn": (*WATCHING, "trainer.on_hacking=warn"),
    "stop": (*WATCHING, "trainer.on_hacking=stop"),
    "rollback": (*WATCHING, "trainer.on_hacking=rollback"),
    "guards": GUARDING,
    "guards_each_step": (*GUARDING, *EACH_STEP),
    "guards_margin": (*GUARDING, *EACH_STEP, *MARGINS),
}
STEPS = BUDGETS["short"].steps
SETTINGS = (
    "preset=tiny",
    "logging.wandb.mode=disabled",
    *BUDGETS["short"].overrides,
    f"trainer.steps={STEPS}",
    "optimizer.lr=3.2e-3",  # the best for colorfulness alone
    "trainer.eval_every=3",
    "trainer.checkpoint_every=3",
    "trainer.eval_prompts=100",  # per source
)
STOPPED = 3  # exit code of a run that the alarm ended
PROMPTS = (
    "a red and orange fish on a sandy ground",
    "a large blue house on a rosy ground",
    'a purple sign that says "67"',
    "a blue circle and a red triangle",
    "a purple diamond and a yellow diamond",
    "a yellow circle and two yellow diamonds",
)


def run(folders: Folders, answer: str, seed: int) -> None:
    """Train one run, draw the prompts and score held-out ones, unless it is scored already."""
    name = f"hacking/{answer}-{seed}"
    if folders.result(name).is_file():
        return
    settings = (*SETTINGS, *ANSWERS[answer], f"trainer.seed={seed}")
    folder = train(folders.runs / name, *settings, ends=(0, STOPPED))
    history = read_metrics(folder)
    steps = history.train[-1]["step"]
    target = remains(folder, stopped=steps < STEPS)
    draw(folders, target, name)
    facts = {
        "overrides": settings,
        "target": Path(target).name,
        "steps": steps,
        "alarms": count_alarms(folder),
        "evaluations": history.held_out,
    }
    Scores(score(folder, target, seed), facts).write(folders.result(name))


def count_alarms(run: Path) -> int:
    """Count the evaluations that showed reward hacking, also those of steps that a rollback undid."""
    lines = (run / "log.txt").read_text().splitlines()
    return sum("WARNING" in line and "a sign of reward hacking" in line for line in lines)


def remains(run: Path, *, stopped: bool) -> str:
    """Return what a user keeps of a run: the best checkpoint of a stopped one, or the base model without."""
    if not stopped:
        return str(run)
    best = read_pointer(run, "best")
    return "base" if best is None else str(run / "checkpoints" / best)


def draw(folders: Folders, target: str, name: str) -> None:
    """Draw the prompts with what `target` names; the pictures lie beside the run."""
    output = folders.runs / f"{name}-pictures"
    settings = () if target != "base" else SETTINGS[:1]
    asked = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    marble("generate", target, *settings, *asked, "--output", str(output), log=output)


def main(arguments: list[str]) -> None:
    """Train and score every run that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.study.hacking",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="folder of runs (%(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of scores (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the runs (%(default)s)")
    options = parser.parse_args(arguments)
    folders = Folders(options.runs, options.results)
    draw(folders, "base", "hacking/base")
    for seed in options.seeds:
        for answer in ANSWERS:
            run(folders, answer, seed)


if __name__ == "__main__":
    main(sys.argv[1:])
