"""A benchmark shared by two processes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from marble_cli.benchmark.bench import bench
from marble_cli.config.schema import RunConfig
from tests.distributed.processes import ends, job
from tests.random_runs import write_random_run


def without_clocks(file: Path) -> Any:
    tree = json.loads(file.read_text())
    for result in tree["results"]:
        del result["seconds"]
    return tree


def test_two_processes_write_the_numbers_of_one(
    run_config: Callable[..., RunConfig],
    randomise: Callable[..., None],
    prompts_folder: Path,
    tmp_path: Path,
) -> None:
    """Of three units, one process draws two."""
    write_random_run(run_config(f"run.dir={tmp_path / 'run'}"), randomise)
    overrides = [
        *("benchmark.resolution=16", "benchmark.steps=2", "benchmark.batch_size=4"),
        *(f"~benchmark.rewards.{name}" for name in ("clipscore", "ocr", "objects")),
        f"benchmark.source.root={prompts_folder}",
    ]
    bench([str(tmp_path / "run")], ["tiny"], overrides, tmp_path / "one")
    command = (
        *("-m", "marble_cli", "bench", tmp_path / "run", *overrides),
        *("--benchmark", "tiny", "--output", tmp_path / "two"),
    )
    (code, out, err), (other, silent, noise) = ends(job([command, command]))
    assert (code, other, silent, noise) == (0, 0, "", ""), err
    assert "colorfulness" in out
    one, two = (without_clocks(tmp_path / name / "bench.json") for name in ("one", "two"))
    assert one == two
