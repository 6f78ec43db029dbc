"""Compare the throughput of `marble train` on one process and on two, with whole and with sharded parameters.

    python -m scripts.bench.parallel [--rounds 3] [--steps 4] [OVERRIDE ...]

Every layout runs in turn, for several rounds, with one thread per process. The figures are those that the
runs log. Ratios are of the medians over all steps after the first of each run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

TWO = ("--nproc", "2")
SHARDED = (*TWO, "trainer.parallel=fsdp")
LAYOUTS: dict[str, tuple[str, ...]] = {
    "1 process": (),
    "2 processes, `ddp`": TWO,
    "2 processes, `fsdp`": SHARDED,
    "2 processes, `fsdp`, `reshard=false`": (*SHARDED, "trainer.fsdp.reshard=false"),
}
SETTINGS = (
    "preset=tiny",
    "trainer.eval_every=0",
    "logging.wandb.mode=disabled",
    "trainer.checkpoint_every=1000",
)

Metrics = list[dict[str, float]]


def run_once(folder: Path, layout: Sequence[str], overrides: Sequence[str]) -> Metrics:
    """Train in `folder` and return the logged metrics of every step after the first, which warms up."""
    command = [
        sys.executable,
        "-m",
        "marble_cli",
        "train",
        *SETTINGS,
        *overrides,
        f"run.dir={folder}",
        *layout,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][1:]


def markdown_table(metrics: dict[str, Metrics]) -> str:
    """Return images per second of every layout, and its ratios to one process."""
    lines = [
        "| layout | images per second | of one process | rollout | training |",
        "|---|---:|---:|---:|---:|",
    ]
    single = metrics["1 process"]
    for name, rows in metrics.items():
        speed = median(rows, "throughput/images_per_second")
        relative = speed / median(single, "throughput/images_per_second")
        rollout, train = (median(single, key) / median(rows, key) for key in ("time/rollout", "time/train"))
        lines.append(f"| {name} | {speed:.1f} | {relative:.2f} x | {rollout:.2f} x | {train:.2f} x |")
    return "\n".join(lines)


def median(rows: Metrics, key: str) -> float:
    """Return the median of one metric over steps."""
    return statistics.median(row[key] for row in rows)


def main(arguments: list[str]) -> None:
    """Run every layout in every round and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.parallel",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs per layout (%(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps per run (%(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="further settings of all runs")
    options = parser.parse_args(arguments)
    overrides = (f"trainer.steps={options.steps}", *options.overrides)
    metrics: dict[str, Metrics] = {name: [] for name in LAYOUTS}
    with tempfile.TemporaryDirectory() as folder:
        for round_number in range(options.rounds):
            for place, (name, layout) in enumerate(LAYOUTS.items()):
                metrics[name] += run_once(Path(folder) / f"{round_number}-{place}", layout, overrides)
    print(markdown_table(metrics))


if __name__ == "__main__":
    main(sys.argv[1:])
