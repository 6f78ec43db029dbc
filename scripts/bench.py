"""What MARBLE costs: steps, memory, whole runs and solvers, each beside its alternative in the same run.

    python scripts/bench.py [--quick] [--parts steps memory run solvers] [--json FILE] [--output FILE.md]

Times are medians of alternating repeats after a warm-up round. `make bench` runs all of it on one thread.
"""

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from bench_run import time_run
from bench_scenes import Scene, random_scene, tiny_scene
from bench_solvers import compare_solvers
from bench_steps import measure_memory, time_steps
from bench_tools import Sheet
from rich.console import Console

WIDTH = 100
PARTS = ("steps", "memory", "run", "solvers")


@dataclass(frozen=True)
class Plan:
    """How much is measured: repeats, the scenes of single steps, and overrides of the whole run."""

    repeats: int
    scenes: tuple[Callable[[], Scene], ...]
    run: tuple[str, ...]
    sizes: tuple[int, ...]
    problems: int


def full_plan() -> Plan:
    """Of the size that docs/results/bench.md shows; latents of a GPU's scene have four times the tokens."""
    side, images = (32, 8) if torch.cuda.is_available() else (16, 4)
    scenes = (lambda: tiny_scene(48), lambda: random_scene(11, 8, side, images))
    return Plan(9, scenes, HALF, (5, 16, 64), 20)


def quick_plan() -> Plan:
    """A minute: whether all works, and the ratios roughly."""
    return Plan(3, (lambda: tiny_scene(16),), SMALL, (5, 16), 5)


# The preset's step at half, and at an eighth of its images; four micro-batches in any case, of which a quarter is one.
HALF = ("rollout.groups=12", "rollout.batch_size=72", "trainer.micro_batch_size=72")
SMALL = ("rollout.groups=6", "rollout.group_size=6", "rollout.batch_size=18", "trainer.micro_batch_size=18")


def sheets(plan: Plan, parts: list[str]) -> Iterator[Sheet]:
    """Measure part by part."""
    for make in plan.scenes if {"steps", "memory"} & set(parts) else ():
        scene = make()
        if "steps" in parts:
            yield time_steps(scene, plan.repeats)
        if "memory" in parts:
            yield measure_memory(scene)
    if "run" in parts:
        yield time_run(plan.repeats, plan.run)
    if "solvers" in parts:
        yield compare_solvers(plan.sizes, plan.problems)


def machine() -> dict[str, str]:
    """What the figures were taken on."""
    found = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "torch threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return found | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def page(done: list[Sheet], command: str) -> str:
    """The tables as a page of the documentation."""
    where = ", ".join(f"{key} {value}" for key, value in machine().items())
    head = f"# What MARBLE costs\n\nMade by `{command}` on {where}.\n"
    return "\n".join([head, *(sheet.markdown() for sheet in done)])


def main(plan: Plan, parts: list[str], output: Path | None, data: Path | None) -> None:
    command = shlex.join(["python", *sys.argv])
    console = Console(width=WIDTH)
    console.print(", ".join(f"{key} {value}" for key, value in machine().items()))
    done = []
    for sheet in sheets(plan, parts):
        console.print(sheet.table())
        done.append(sheet)
    if output:
        output.write_text(page(done, command), encoding="utf-8")
    if data:
        content = {"command": command, "machine": machine(), "tables": [sheet.data() for sheet in done]}
        data.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small settings and few repeats")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--output", type=Path, help="write the tables there, in Markdown")
    options = parser.parse_args()
    main(quick_plan() if options.quick else full_plan(), options.parts, options.output, options.json)
