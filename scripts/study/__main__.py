"""Compare all balances on the embedded model, each at its own best learning rate and at equal drift.

    python -m scripts.study [--budget short] [--methods NAME ...] [--workers 2]

A cell is a method at a learning rate with a seed, trained and scored once. Tuning cells come first; from them
the learning rates of the judged cells are chosen. Finished cells are skipped, whoever made them: their scores
are committed. An unfinished cell resumes from its last checkpoint. `python -m scripts.study.report` turns the
results into docs/results/study.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from scripts.study.cells import (
    BUDGETS,
    MARBLE,
    MERGES,
    TUNING_SEED,
    UNMATCHED,
    Cell,
    judged_cells,
    methods,
)
from scripts.study.choose import best_rate, next_cells, rate_at_drift, tuning_curve
from scripts.study.scores import Folders, base_name

RESULTS = Path("docs/results/study/cells")


def run_study(folders: Folders, budget: str, names: list[str], workers: int) -> None:
    """Run the unfinished cells of some methods at one budget, `workers` at a time."""
    seeds = (TUNING_SEED, *BUDGETS[budget].seeds)
    run_all(
        [["base", str(seed)] for seed in seeds if not folders.result(base_name(seed)).is_file()],
        folders,
        workers,
    )
    trained = [name for name in names if name not in MERGES]
    for group in (trained, [name for name in names if name in MERGES]):
        while cells := untried_cells(folders, budget, group):
            run_cells(cells, folders, workers)
            if not all(map(folders.has, cells)):
                break  # a cell failed, and would again
        run_cells(chosen_cells(folders, budget, group), folders, workers)


def untried_cells(folders: Folders, budget: str, names: list[str]) -> list[Cell]:
    """Return the tuning cells that are still needed to choose the methods' learning rates."""
    return [cell for name in names for cell in next_cells(tuning_curve(folders, budget, name), budget, name)]


def chosen_cells(folders: Folders, budget: str, names: list[str]) -> list[Cell]:
    """Return the judged cells of the methods that are tuned: at the best rates, then at equal drift."""
    curves = {name: tuning_curve(folders, budget, name) for name in {*names, MARBLE}}
    tuned = [name for name in names if not next_cells(curves[name], budget, name)]
    cells = [cell for name in tuned for cell in judged_cells(budget, name, best_rate(curves[name]))]
    if not next_cells(curves[MARBLE], budget, MARBLE):
        drift = curves[MARBLE][best_rate(curves[MARBLE])].drift
        for name in (name for name in tuned if name not in UNMATCHED):
            cells += judged_cells(budget, name, rate_at_drift(curves[name], drift))
    return list(dict.fromkeys(cells))


def run_cells(cells: list[Cell], folders: Folders, workers: int) -> None:
    """Run those cells that have no scores."""
    unfinished = [cell for cell in cells if not folders.has(cell)]
    print(f"{len(unfinished)} cells to do, {len(cells) - len(unfinished)} done", flush=True)
    run_all([[c.budget, c.method, f"{c.rate:.2g}", str(c.seed)] for c in unfinished], folders, workers)


def run_all(cells: list[list[str]], folders: Folders, workers: int) -> None:
    """Run cells by their names, `workers` at a time, each in a process of its own."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(partial(run_process, folders=folders, environment=environment), cells))


def run_process(cell: list[str], folders: Folders, environment: dict[str, str]) -> None:
    """Run one cell and print how it ended."""
    command = [sys.executable, "-m", "scripts.study.runner", str(folders.runs), str(folders.results), *cell]
    code = subprocess.run(command, env=environment, check=False).returncode
    print(f"{' '.join(cell)}: {'done' if code == 0 else f'failed with exit code {code}'}", flush=True)


def main(arguments: list[str]) -> None:
    """Run the cells that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="folder of runs (%(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of scores (%(default)s)")
    parser.add_argument("--budget", choices=BUDGETS, help="all, one after the other, by default")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="all of the budget's by default")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="cells at a time; one per core by default"
    )
    options = parser.parse_args(arguments)
    for budget in [options.budget] if options.budget else BUDGETS:
        known = methods(budget)
        if unknown := set(options.methods or ()) - set(known):
            parser.error(f"unknown methods {', '.join(sorted(unknown))}; expected some of {', '.join(known)}")
        run_study(Folders(options.runs, options.results), budget, options.methods or known, options.workers)


if __name__ == "__main__":
    main(sys.argv[1:])
