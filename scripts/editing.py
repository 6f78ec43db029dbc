"""Train the embedded editing model under several balances, and show what each does to the pictures.

    python -m scripts.editing [--seeds 0 1 2] [--runs runs/editing] [--docs docs]

Trains `preset=tiny_edit` on `following` alone (with `keeping` watched), on their weighted sum, and balanced.
Scores every run and the base model on the held-out instructions with the same noise, and writes
results/editing.md with its pictures. Finished runs are skipped, unfinished ones resume.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from marble_cli.config.compose import compose
from marble_cli.evaluate.compare import RewardResult, compare, compare_jointly
from marble_cli.evaluate.evaluate import held_out_prompts
from marble_cli.evaluate.joint import JointChange
from marble_cli.evaluate.score import Evaluation, make_evaluator
from marble_cli.evaluate.target import Models, resolve_target
from marble_cli.metrics.figures import COLORS, STYLE, TO_EDIT, image_grid
from marble_cli.metrics.history import read_metrics, series
from marble_cli.rewards.scorer import open_scorer
from scripts.study.runner import UNWATCHED, train
from scripts.study.tables import markdown_table

REWARDS = ("following", "keeping")
BASE = "base"
DOCS = Path(__file__).resolve().parents[1] / "docs"
SETTINGS = (
    "preset=tiny_edit",
    "logging.wandb.mode=disabled",
    "trainer.eval_every=10",
    "trainer.eval_prompts=96",
)
JUDGED = "trainer.eval_prompts=1000"  # all that are held out
METHODS = {
    "following alone": ("rewards=[following]", "+rewards@eval_rewards=[keeping]"),
    "weighted_sum": ("balance=weighted_sum",),
    "marble": (),  # as the preset has it
}


PAGE = """# Editing: follow the instruction, keep the picture

Written by `python -m scripts.editing`. [The editing world](../explanation/tiny.md#the-editing-world) says
what the model is. `following` is how far the region of an instruction shows what it asks for (0 to 1);
`keeping` is minus the mean change of a pixel outside of that region, in grey levels of 255.

Every run is `preset=tiny_edit`: {steps} steps of {images} images, from the same base model. It is judged on
{prompts} held-out instructions, about pictures that no run has seen, with the base model's initial noise. In
`weighted_sum` both rewards are scaled to unit standard deviation on the base model.

{means}

Differences are trained minus base, means over the seeds. An image is improved jointly if one of the two
rewards rose and none fell, and declined jointly if both fell.

![The picture to edit, the base model's, and those of the runs of seed {seed}](../images/editing.png)

The same instructions and noise in every row, seed {seed}.

![Following over keeping in the course of the runs](../images/editing-course.png)

A line is a run; its dots are evaluations on {watched} held-out instructions, from the base model's on.

## Every run

The intervals are 95 % paired bootstrap intervals over the instructions.

{runs}
"""


@dataclass(frozen=True)
class Outcome:
    """One run beside the base model, on the same instructions and noise."""

    rewards: dict[str, RewardResult]
    joint: JointChange


Outcomes = dict[str, dict[int, Outcome]]  # by method and seed


def run_folder(runs: Path, method: str, seed: int) -> Path:
    """Return the folder of a run."""
    return runs / f"{method.replace(' ', '-')}-{seed}"


def score(folders: dict[str, Path], seed: int) -> dict[str, Evaluation]:
    """Score the base model and the runs in `folders`, each on both rewards, with the noise of a seed."""
    targets = [resolve_target(str(folder)) for folder in folders.values()]
    settings = UNWATCHED if targets else SETTINGS  # a run's configuration is the first run's
    words = [*settings, f"rewards=[{','.join(REWARDS)}]", JUDGED, f"trainer.seed={seed}"]
    models = Models(words, [resolve_target(BASE), *targets])
    prompts = held_out_prompts(models.config)
    with open_scorer(models.config.rewards, "cpu") as scorer:
        return {
            name: make_evaluator(models.config, models.hold(target), scorer, prompts).score(target.adapter)
            for name, target in zip((BASE, *folders), models.targets, strict=True)
        }


def unit_weights(base: Evaluation) -> list[str]:
    """Return overrides that scale both rewards to unit standard deviation on the base model."""
    deviations = {name: deviation for name, (_, deviation, _) in base.summary().items()}
    return [f"rewards.{name}.weight={1 / deviations[name]:.4g}" for name in REWARDS]


def compare_with_base(evaluations: dict[str, Evaluation]) -> dict[str, Outcome]:
    """Compare every run with the base model."""
    base = evaluations[BASE]
    outcomes = {}
    for method in METHODS:
        joint = compare_jointly(evaluations[method], base, REWARDS)
        assert joint is not None  # both rewards apply to all
        outcomes[method] = Outcome({r.name: r for r in compare(evaluations[method], base)}, joint)
    return outcomes


def mean_table(outcomes: Outcomes) -> str:
    """Tabulate every method's means over its seeds."""
    rows = []
    for method, found in outcomes.items():
        cells = [f"`{method}`", str(len(found))]
        for name in REWARDS:
            results = [outcome.rewards[name] for outcome in found.values()]
            before, after, gain = (
                mean(getattr(result, key) for result in results)
                for key in ("reference", "mean", "difference")
            )
            cells += [f"{before:.2f} → {after:.2f}", f"{gain:+.2f}"]
        joints = [outcome.joint for outcome in found.values()]
        cells += [f"{mean(j.improvement for j in joints):.0%}", f"{mean(j.decline for j in joints):.0%}"]
        rows.append(cells)
    heads = ["trained on", "seeds", "following", "difference", "keeping", "difference"]
    return markdown_table([*heads, "improved jointly", "declined jointly"], rows)


def run_table(outcomes: Outcomes) -> str:
    """Tabulate every run."""
    rows = []
    for method, found in outcomes.items():
        for seed, outcome in found.items():
            results = [outcome.rewards[name] for name in REWARDS]
            changes = [f"{r.difference:+.3f} ({r.low:+.3f} … {r.high:+.3f}), {r.verdict}" for r in results]
            shares = [f"{share:.1%}" for share in (outcome.joint.improvement, outcome.joint.decline)]
            rows.append([f"`{method}`", str(seed), *changes, *shares])
    return markdown_table(["trained on", "seed", *REWARDS, "improved jointly", "declined jointly"], rows)


def draw_sheet(evaluations: dict[str, Evaluation], output: Path) -> None:
    """Draw the pictures to edit above those of the base model and of every run."""
    base = evaluations[BASE]
    rows = [(TO_EDIT, base.conditions), *((name, each.images) for name, each in evaluations.items())]
    image_grid(rows, base.captions, output)


def draw_course(folders: dict[str, dict[int, Path]], output: Path) -> None:
    """Draw following over keeping on held-out instructions in the course of every run."""
    with plt.rc_context(STYLE):
        figure, panel = plt.subplots(figsize=(5.2, 3.8))
        for color, (method, runs) in zip(COLORS, folders.items(), strict=False):
            for place, folder in enumerate(runs.values()):
                rows = read_metrics(folder).held_out
                kept, followed = (series(rows, f"reward/{name}/mean")[1] for name in reversed(REWARDS))
                label = method if place == 0 else None
                panel.plot(kept, followed, color=color, marker="o", ms=3, lw=1.2, alpha=0.8, label=label)
        panel.set_xlabel("keeping (grey levels)")
        panel.set_ylabel("following")
        panel.legend(frameon=False)
        figure.tight_layout()
        figure.savefig(output)
        plt.close(figure)


def main(arguments: list[str]) -> None:
    """Train and score every run that the command line names, and write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.editing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/editing"), help="folder of runs (%(default)s)"
    )
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the documentation (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the runs (%(default)s)")
    options = parser.parse_args(arguments)
    weights = unit_weights(score({}, options.seeds[0])[BASE])
    folders: dict[str, dict[int, Path]] = {method: {} for method in METHODS}
    for seed in options.seeds:
        for method, overrides in METHODS.items():
            scaled = weights if method == "weighted_sum" else []
            words = (*SETTINGS, *overrides, *scaled, f"trainer.seed={seed}")
            folders[method][seed] = train(run_folder(options.runs, method, seed), *words)
    scored = {seed: score({m: folders[m][seed] for m in METHODS}, seed) for seed in options.seeds}
    write_page(options.docs, folders, scored)


def write_page(
    docs: Path, folders: dict[str, dict[int, Path]], scored: dict[int, dict[str, Evaluation]]
) -> None:
    """Write the page and its pictures into the folder of the documentation."""
    compared = {seed: compare_with_base(evaluations) for seed, evaluations in scored.items()}
    outcomes = {method: {seed: compared[seed][method] for seed in scored} for method in METHODS}
    seed, first = next(iter(scored.items()))
    config = compose([*SETTINGS, "run.dir=unused"])
    page = PAGE.format(
        steps=config.trainer.steps,
        images=config.rollout.groups * config.rollout.group_size,
        prompts=len(first[BASE].prompts),
        watched=config.trainer.eval_prompts,
        seed=seed,
        means=mean_table(outcomes),
        runs=run_table(outcomes),
    )
    for folder in ("images", "results"):
        (docs / folder).mkdir(parents=True, exist_ok=True)
    draw_sheet(first, docs / "images" / "editing.png")
    draw_course(folders, docs / "images" / "editing-course.png")
    (docs / "results" / "editing.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
