"""Print the table and draw the pictures of the runs that hack a reward, from what is done.

    python -m scripts.study.hacking_report [--runs runs/study]

Prints the table. Writes hacking.png with the rewards over the steps, and hacking-images.png with the same
prompts and noise drawn by the runs of the first seed; these need the run folders.
"""

import argparse
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from marble_cli.metrics.figures import COLORS, STYLE, image_grid
from marble_cli.metrics.history import series
from scripts.study.__main__ import RESULTS
from scripts.study.cells import REWARDS
from scripts.study.hacking import ANSWERS, PROMPTS, TRAINED, WATCHED
from scripts.study.scores import Folders, Scores, base_name
from scripts.study.statistics import base_unit, with_intervals
from scripts.study.tables import format_gain, markdown_table

Runs = dict[str, dict[int, Scores]]  # by answer and seed


def read_runs(folders: Folders) -> Runs:
    """Read the finished runs."""
    runs: Runs = {answer: {} for answer in ANSWERS}
    for answer, found in runs.items():
        for file in sorted(folders.results.glob(f"hacking/{answer}-*.npz")):
            found[int(file.stem.rpartition("-")[2])] = Scores.read(file)
    return {answer: found for answer, found in runs.items() if found}


def table(folders: Folders, runs: Runs) -> str:
    """Tabulate per answer the gains over the base model on held-out prompts, and what the runs did."""
    unit, rows = base_unit(folders), []
    for answer, found in runs.items():
        gains = with_intervals(
            [
                (one.values.astype(float) - Scores.read(folders.result(base_name(seed))).values)
                / unit[:, None]
                for seed, one in found.items()
            ]
        )
        facts = [one.facts for one in found.values()]
        told = [", ".join(str(fact[key]) for fact in facts) for key in ("steps", "alarms")]
        rows.append([f"`{answer}`", str(len(found)), *(format_gain(gains[name]) for name in REWARDS), *told])
    return markdown_table(["answer", "seeds", *REWARDS, "steps", "alarms"], rows)


def draw_curves(runs: Runs, unit: np.ndarray, output: Path) -> None:
    """Draw the changes of the trained and the watched rewards over the steps, one line per run."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 3, figsize=(12, 3.6))
        for panel, name in zip(panels, (TRAINED, *WATCHED), strict=True):
            scale = unit[REWARDS.index(name)]
            for color, (answer, found) in zip(COLORS, runs.items(), strict=False):
                for place, one in enumerate(found.values()):
                    steps, changes = series(one.facts["evaluations"], f"reward/{name}/change")
                    label = answer if place == 0 else None
                    panel.plot(steps, np.array(changes) / scale, color=color, lw=1.4, alpha=0.8, label=label)
            panel.axhline(0, color="0.7", lw=0.8)
            panel.set_title(name)
            panel.set_xlabel("step")
        panels[0].set_ylabel("change since the start (base standard deviations)")
        panels[0].legend(frameon=False)
        figure.tight_layout()
        figure.savefig(output)
        plt.close(figure)


def draw_images(runs: Runs, folder: Path, output: Path) -> None:
    """Draw the prompts: a row for the base model and one for the first run of every answer."""
    first = {answer: f"{answer}-{min(found)}" for answer, found in runs.items()}
    rows = [
        (label, read_pictures(folder / f"{name}-pictures"))
        for label, name in {"base": "base", **first}.items()
    ]
    image_grid(rows, list(PROMPTS), output)


def read_pictures(folder: Path) -> torch.Tensor:
    """Return the pictures of a folder, uint8 [N, 3, H, W]."""
    pictures = []
    for file in sorted(folder.glob("*.png")):
        with Image.open(file) as picture:
            pictures.append(np.asarray(picture))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def main(arguments: list[str]) -> None:
    """Write what the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.study.hacking_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="folder of runs (%(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of scores (%(default)s)")
    parser.add_argument(
        "--output", type=Path, default=RESULTS.parent, help="folder to write to (%(default)s)"
    )
    options = parser.parse_args(arguments)
    folders = Folders(options.runs, options.results)
    runs = read_runs(folders)
    print(table(folders, runs))
    draw_curves(runs, base_unit(folders), options.output / "hacking.png")
    draw_images(runs, folders.runs / "hacking", options.output / "hacking-images.png")


if __name__ == "__main__":
    main(sys.argv[1:])
