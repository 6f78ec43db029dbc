"""Compare all balances on the embedded model, at equal image budgets.

    python -m scripts.study [--directory runs/study] [--seeds 0 1 2] [--workers 2] [--cells NAME ...]

Each cell (a method with a seed) is trained and scored once. Finished cells are skipped; an unfinished cell
resumes from its last checkpoint. `python -m scripts.study.report` turns the results into docs/results/study.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scripts.study.cells import BASE, CELLS, SEEDS


def run_all(directory: Path, seeds: list[int], workers: int, names: list[str]) -> None:
    """Run the unfinished cells, `workers` at a time, each in a process of its own."""
    from scripts.study.runner import is_done

    cells = [(name, seed) for name in names for seed in seeds]
    unfinished = [(name, seed) for name, seed in cells if not is_done(directory / f"{name}-{seed}", name)]
    print(f"{len(unfinished)} cells to do, {len(cells) - len(unfinished)} done", flush=True)
    threads = max(1, (os.cpu_count() or 1) // workers)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}

    def run_process(cell: tuple[str, int]) -> None:
        name, seed = cell
        arguments = ["--directory", str(directory), "--run-cell", name, "--seeds", str(seed)]
        command = [sys.executable, "-m", "scripts.study", *arguments]
        code = subprocess.run(command, env=environment, check=False).returncode
        print(f"{name}, seed {seed}: {'done' if code == 0 else f'failed with exit code {code}'}", flush=True)

    with ThreadPoolExecutor(workers) as pool:
        # The base model's scores come first: they set the weights of the weighted sum.
        for wave in ([c for c in unfinished if c[0] == BASE], [c for c in unfinished if c[0] != BASE]):
            list(pool.map(run_process, wave))


def main(arguments: list[str]) -> None:
    """Run the cells that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--directory", type=Path, default=Path("runs/study"), help="folder of all results (%(default)s)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="seeds per method (0 1 2)")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="cells at a time; one per core by default"
    )
    parser.add_argument(
        "--cells",
        nargs="+",
        choices=CELLS,
        default=list(CELLS),
        metavar="NAME",
        help="methods; all by default",
    )
    parser.add_argument("--run-cell", choices=CELLS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.run_cell:
        from scripts.study.runner import run_cell

        run_cell(options.directory, options.run_cell, options.seeds[0])
    else:
        run_all(options.directory, options.seeds, options.workers, options.cells)


if __name__ == "__main__":
    main(sys.argv[1:])
