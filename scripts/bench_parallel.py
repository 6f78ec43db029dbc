"""Throughput of `marble train` on one process and on two, whole on each or in shards, from what the runs log themselves.

Every layout runs in turn, several rounds over, with one thread a process; ratios are of the medians of the steps after the first.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from marble_cli.metrics.jsonl import read_rows

LAYOUTS = {
    "1 process": (),
    "2 processes, `ddp`": ("--nproc", "2"),
    "2 processes, `fsdp`": ("--nproc", "2", "trainer.parallel=fsdp"),
    "2 processes, `fsdp`, `reshard=false`": ("--nproc", "2", "trainer.parallel=fsdp", "trainer.fsdp.reshard=false"),
}  # fmt: skip
SETTINGS = (
    "preset=tiny",
    "trainer.eval_every=0",
    "logging.wandb.mode=disabled",
    "trainer.checkpoint_every=1000",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps of each run")
    parser.add_argument("overrides", nargs="*", help="further settings of all runs")
    asked = parser.parse_args()
    times: dict[str, list[dict[str, float]]] = {name: [] for name in LAYOUTS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(asked.rounds):
            for name, layout in LAYOUTS.items():
                run = Path(folder) / f"{number}-{len(times[name])}-{len(layout)}"
                overrides = (*SETTINGS, f"trainer.steps={asked.steps}", *asked.overrides, f"run.dir={run}")
                command = [sys.executable, "-m", "marble_cli", "train", *overrides, *layout]
                subprocess.run(
                    command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
                )
                rows = read_rows(run / "metrics.jsonl")
                times[name] += rows[1:]
    print("| layout | images a second | of one process | rollout | training |\n|---|---:|---:|---:|---:|")
    one = times["1 process"]
    for name, rows in times.items():
        speed = median(rows, "throughput/images_per_second")
        ratios = [median(one, key) / median(rows, key) for key in ("time/rollout", "time/train")]
        relative = speed / median(one, "throughput/images_per_second")
        print(f"| {name} | {speed:.1f} | {relative:.2f} x | {ratios[0]:.2f} x | {ratios[1]:.2f} x |")


def median(rows: list[dict[str, float]], key: str) -> float:
    return statistics.median(row[key] for row in rows)


if __name__ == "__main__":
    main()
