"""Aspects, one of them a guard, on two processes that share the weights: they train as one does."""

from collections.abc import Callable
from pathlib import Path

import pytest

from marble_cli.config.compose import dump
from marble_cli.config.schema import RunConfig
from marble_cli.metrics.jsonl import read_rows
from marble_cli.rewards.builtin import colorfulness
from tests.distributed import aspect_ranks
from tests.distributed.alike import assert_alike
from tests.distributed.processes import ends, job

ASPECTS = "{red: {}, blue: {weight: 2.0}, contrast: {role: guard, margin: 0.9}}"
SETTINGS = (
    "rewards=[colorfulness]",
    f"rewards.colorfulness.aspects={ASPECTS}",
    "trainer.steps=2",
    "balance.refresh_every=2",  # the second step has the cached weights
    "trainer.eval_every=0",
    "rollout.groups=3",
    "rollout.batch_size=3",
    "trainer.micro_batch_size=3",
)


def test_guards_and_aspects_on_two_processes(
    run_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(colorfulness, "colorfulness", colorfulness.colorfulness)  # put back afterwards
    files = {name: tmp_path / f"{name}.yaml" for name in ("alone", "two")}
    for name, file in files.items():
        more = ("trainer.parallel=fsdp",) if name == "two" else ()
        file.write_text(dump(run_config(*SETTINGS, *more, f"run.dir={tmp_path / name}")))
    program = Path(aspect_ranks.__file__)
    for rank, (_, out, err) in enumerate(ends(job([(program, files["two"])] * 2))):
        assert out.endswith(f"done {rank}\n"), err
    aspect_ranks.main(files["alone"])
    alone, two = (read_rows(tmp_path / name / "metrics.jsonl") for name in files)
    assert_alike(two, alone)
    assert [row["balance/refresh"] for row in two] == [1, 0]
    guard = "balance/guard/colorfulness.contrast"
    assert (two[0][f"{guard}/acted"], two[0][f"{guard}/violation"]) == (1, 0)
    assert all(row["reward/colorfulness.red/applicable"] > 0 for row in two)
