"""Write the study's report from the results of `python -m scripts.study`.

    python -m scripts.study.report [--directory runs/study] [--output docs/results/study]

Writes results.md, results.json and three figures. Cells without results are left out, and the report counts
them.
"""

import argparse
import json
import sys
from pathlib import Path
from string import Template

from scripts.study.cells import ABLATIONS, BASE, CELLS, METHODS, SEEDS
from scripts.study.figures import SPECIALISTS, draw_balance, draw_gains, draw_specialists
from scripts.study.statistics import Cell, base_statistics, summarise
from scripts.study.tables import gain_table, raw_table

SPECIALISTS_FIGURE_METHODS = ("marble", "weighted_sum", "advantage_sum")

PAGE = Template("""# Results of the study

Written by `python -m scripts.study.report` from $done of $planned runs of `make study`.

Gains are over the base model on held-out prompts, in units of the base's standard deviation, with half of a
95 % bootstrap interval over seeds and prompts. A gain is bold if its interval excludes zero.

- *Composite*: the mean of the five gains.
- *Worst reward*: the smallest of them.
- *All five up*: seeds in which the mean of every reward rose.
- *A reward pushed down*: share of the steps with a measured gradient of every reward in which the applied
  direction had a negative cosine with one of them.
- *Between refreshes*: share of the refreshes before which the cached weights of the amortised steps would
  have pushed a reward down.
- *images/s*: from the tenth percentile of the steps' times. The runs shared the machine with others, so this
  compares roughly; [`make bench`](../bench.md) compares exactly.

## Methods

$methods

![Gain of every method in every reward](gains.png)

![Mean gain against the gain of the worst reward](balance.png)

![Gain of training on one reward alone, and of methods that train on five](specialists.png)

## Ablations

$ablations

## In the rewards' own units

$raw
""")


def write_report(directory: Path, output: Path) -> None:
    """Summarise the results in `directory` and write all files of the report to `output`."""
    base, unit = base_statistics(directory)
    trained = [name for name in CELLS if name != BASE]
    cells = {name: cell for name in trained if (cell := summarise(directory, name, unit))}
    output.mkdir(parents=True, exist_ok=True)
    figures = {"unit": unit, "base": base, "cells": {name: cell.as_json() for name, cell in cells.items()}}
    (output / "results.json").write_text(json.dumps(figures, indent=1) + "\n")
    draw_figures(cells, output)
    methods = [cells[name] for name in METHODS if name in cells]
    ablations = [cells[name] for name in ABLATIONS if name in cells]
    reference = [cells[name] for name in ("marble_amortised",) if name in cells]
    done, planned = sum(cell.seeds for cell in cells.values()), len(SEEDS) * len(trained)
    page = PAGE.substitute(
        done=done,
        planned=planned,
        methods=gain_table(methods),
        ablations=gain_table([*reference, *ablations]),
        raw=raw_table([*methods, *ablations], base),
    )
    (output / "results.md").write_text(page)
    print(f"{done} of {planned} runs; {output / 'results.md'}")


def draw_figures(cells: dict[str, Cell], output: Path) -> None:
    """Draw the figures of the methods; the specialists' only if all of them have results."""
    methods = [cells[name] for name in METHODS if name in cells]
    draw_gains(methods, output / "gains.png")
    draw_balance([cell for cell in methods if cell.name not in SPECIALISTS], output / "balance.png")
    if all(name in cells for name in SPECIALISTS):
        compared = [name for name in SPECIALISTS_FIGURE_METHODS if name in cells]
        draw_specialists(cells, compared, output / "specialists.png")


def main(arguments: list[str]) -> None:
    """Write the report that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.study.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--directory", type=Path, default=Path("runs/study"), help="results of the study (%(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("docs/results/study"), help="folder of the report (%(default)s)"
    )
    options = parser.parse_args(arguments)
    write_report(options.directory, options.output)


if __name__ == "__main__":
    main(sys.argv[1:])
