"""Measure the cost of MARBLE: steps, memory, whole runs and solvers, each beside its alternative.

    python -m scripts.bench [--quick] [--parts steps memory run solvers] [--json FILE] [--output FILE.md]

Both sides of a comparison are measured in the same process. Times are medians of alternating repeats after a
warm-up round. `make bench` runs all parts on one thread.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from scripts.bench.report import Sheet, publish
from scripts.bench.run import time_run
from scripts.bench.scenes import Scene, random_scene, tiny_scene
from scripts.bench.solvers import compare_solvers
from scripts.bench.steps import measure_memory, time_steps

PARTS = ("steps", "memory", "run", "solvers")

# Half and an eighth of the preset's images per step, in four micro-batches each, so that a quarter is one
# micro-batch.
HALF = ("rollout.groups=12", "rollout.batch_size=72", "trainer.micro_batch_size=72")
EIGHTH = ("rollout.groups=6", "rollout.group_size=6", "rollout.batch_size=18", "trainer.micro_batch_size=18")


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        repeats: timed rounds.
        scenes: makers of the scenes of single steps.
        run: overrides of the whole run.
        sizes: numbers of rewards that the solvers are compared at.
        problems: random problems per size.
    """

    repeats: int
    scenes: tuple[Callable[[], Scene], ...]
    run: tuple[str, ...]
    sizes: tuple[int, ...]
    problems: int


def full_plan() -> Plan:
    """Return the plan behind docs/results/bench.md; on a GPU the latents have four times the tokens."""
    side, images = (32, 8) if torch.cuda.is_available() else (16, 4)
    scenes = (lambda: tiny_scene(48), lambda: random_scene(11, 8, side, images))
    return Plan(9, scenes, HALF, (5, 16, 64), 20)


def quick_plan() -> Plan:
    """Return a plan of about a minute: it shows that everything works, and rough ratios."""
    return Plan(3, (lambda: tiny_scene(16),), EIGHTH, (5, 16), 5)


def measure(plan: Plan, parts: list[str]) -> Iterator[Sheet]:
    """Measure the parts in turn and yield a table for each."""
    for make_scene in plan.scenes if {"steps", "memory"} & set(parts) else ():
        scene = make_scene()
        if "steps" in parts:
            yield time_steps(scene, plan.repeats)
        if "memory" in parts:
            yield measure_memory(scene)
    if "run" in parts:
        yield time_run(plan.repeats, plan.run)
    if "solvers" in parts:
        yield compare_solvers(plan.sizes, plan.problems)


def main(arguments: list[str]) -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="small settings and few repeats")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure; all by default"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    parser.add_argument("--output", type=Path, metavar="FILE.md", help="write the tables to this file")
    options = parser.parse_args(arguments)
    command = shlex.join(["python", "-m", "scripts.bench", *arguments])
    plan = quick_plan() if options.quick else full_plan()
    publish(measure(plan, options.parts), command, options.output, options.json)


if __name__ == "__main__":
    main(sys.argv[1:])
