"""Processes share a step by image: any number of them trains as one process does."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from marble_cli.config.compose import compose, dump
from marble_cli.config.enums import Parallel
from marble_cli.config.schema import RunConfig
from marble_cli.distributed.shares import share
from marble_cli.errors import ConfigError
from marble_cli.metrics.jsonl import read_rows
from marble_cli.plan.checks import check_geometry
from marble_cli.plan.groups import check_groups, images_together
from marble_cli.rewards.api import Declaration
from marble_cli.run.train import train
from tests.distributed.alike import SETTINGS, STEPS, assert_alike
from tests.distributed.processes import ends, job


@pytest.fixture(scope="module")
def alone(
    run_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., list[dict[str, Any]]]:
    """A function of settings: the metrics of one process, which is run once."""

    @cache
    def metrics(*settings: str) -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp("alone")
        assert train(run_config(*settings, f"run.dir={folder}"), resume="auto") == 0
        return read_rows(folder / "metrics.jsonl")

    return metrics


@pytest.mark.parametrize(
    ("sizes", "worlds", "parallel"),
    [
        (False, (2,), Parallel.ddp),
        (True, (3, 4), Parallel.ddp),
        (True, (2,), Parallel.fsdp),
    ],
    ids=str,
)
def test_processes_that_split_groups_train_as_one(
    sizes: bool,
    sized_prompts_folder: Path,
    alone: Callable[..., list[dict[str, Any]]],
    run_config: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    worlds: tuple[int, ...],
    parallel: Parallel,
) -> None:
    """15 images: 8 for each of two processes, of which one is padding, 5 for three, 4 for four.

    Of several sizes each is shared so. Evaluations of six prompts are shared too. A run of three processes
    goes on with four.
    """
    settings = [*SETTINGS, *([f"data.root={sized_prompts_folder}"] if sizes else [])]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder, file = tmp_path / "run", tmp_path / "config.yaml"
    for run, world in enumerate(worlds, 1):
        last = STEPS if run == len(worlds) else run
        file.write_text(
            dump(
                run_config(
                    *settings,
                    f"run.dir={folder}",
                    f"trainer.steps={last}",
                    f"trainer.parallel={parallel.value}",
                )
            )
        )
        command = ("-m", "marble_cli", "train", "--config-name", file)
        for code, _, err in ends(job([command] * world)):
            assert code == 0, err
    rows = read_rows(folder / "metrics.jsonl")
    assert_alike([row for row in rows if (row["step"], row["phase"]) != (1, "eval")], alone(*settings))


def test_groups_of_a_groupwise_reward_stay_whole(
    run_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three groups: two for each of two processes, of which one is padding."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = []
    for world in (1, 2):
        folder, file = tmp_path / f"run-{world}", tmp_path / f"{world}.yaml"
        counts = ("rollout.groups=3", "rollout.group_size=4", "rollout.batch_size=8")
        settings = ("rewards=[colorfulness]", *counts)
        file.write_text(dump(run_config(*settings, f"run.dir={folder}")))
        command = (Path(__file__).with_name("groupwise_ranks.py"), file)
        for rank, (_, out, err) in enumerate(ends(job([command] * world))):
            assert out.endswith(f"done {rank}\n"), err
        rows.append(read_rows(folder / "metrics.jsonl"))
    assert rows[0][0]["reward/colorfulness/mean"] == pytest.approx(0.0, abs=1e-9)
    assert rows[0][0]["reward/colorfulness/failed"] == 0
    assert_alike(*rows)


@pytest.mark.parametrize("sizes", [[512] * 12, [512] * 3 + [768] * 6 + [512] * 3, [8, 16, 8, 8] * 3], ids=str)
@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("world", range(1, 10))
def test_every_image_is_real_on_one_rank(world: int, together: int, sizes: list[int]) -> None:
    """Shares are equally long, keep `together` images whole, and repeat none; equal rows have one size."""
    if together == 3:
        sizes = [size for size in sizes[::3] for _ in range(3)]
    shares = share(sizes, world, together)
    real = shares.everywhere[shares.everywhere >= 0].tolist()
    assert sorted(real) == list(range(12))
    if len(set(sizes)) == 1:
        assert real == list(range(12))
    for column in shares.images.T.tolist():
        assert len({sizes[i] for i in column}) == 1
    for rank in range(world):
        own, there = shares.own(rank), shares.everywhere[rank].tolist()
        assert all(place in (-1, i) for i, place in zip(own, there, strict=True))
        assert len(set(own)) == len(own)
        for first in range(0, len(own), together):
            assert own[first] % together == 0
            assert own[first : first + together] == list(range(own[first], own[first] + together))
    most = max(-(-sizes.count(size) // (together * world)) * together for size in set(sizes))
    assert shares.images.shape[1] <= len(set(sizes)) * most


def declarations(config: RunConfig, groupwise: Sequence[str] = ()) -> dict[str, Declaration]:
    return {name: Declaration(groupwise=name in groupwise) for name in config.rewards}


def test_64_processes_share_the_papers_step_but_not_whole_groups() -> None:
    machines = ("launcher.nodes=8", "launcher.nproc=8")
    config = compose(["preset=sd35m_5r", *machines, "rollout.batch_size=24", "trainer.eval_every=0"])
    check_geometry(config.rollout, config.trainer, 64)
    check_groups(config, declarations(config))
    assert images_together(config.rollout, declarations(config).values()) == 1
    groupwise = declarations(config, [next(iter(config.rewards))])
    assert images_together(config.rollout, groupwise.values()) == config.rollout.group_size
    with pytest.raises(ConfigError, match=r"rollout\.groups=48.* at most 48 processes.*groups=64"):
        check_groups(config, groupwise)
    config.launcher.nodes = 6
    check_groups(config, groupwise)


def test_more_processes_than_images_are_refused() -> None:
    config = compose(["preset=tiny", "rollout.groups=2", "rollout.group_size=3"])
    check_geometry(config.rollout, config.trainer, 6)
    with pytest.raises(ConfigError, match=r"7 processes cannot share the 6 images .* at most 6"):
        check_geometry(config.rollout, config.trainer, 7)
