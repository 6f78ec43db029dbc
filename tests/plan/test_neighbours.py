"""What shares a device with the model: reward models, counted from their files, and NCCL's buffers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file

from marble_cli.config.schema import RewardConfig, RunConfig
from marble_cli.errors import RequestError, RewardError
from marble_cli.plan import neighbours
from marble_cli.plan.cards import tabulate_cards
from marble_cli.plan.memory import check_memory, memory
from marble_cli.plan.neighbours import NCCL, find_neighbours
from marble_cli.rewards.api import Declaration
from tests.plan.small_model import SIZE

RunConfigMaker = Callable[..., RunConfig]
CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


class Judge:
    loads: ClassVar = {"model": {"someone/published": 1000}}

    def __init__(self, model: str = "someone/published", device: str = "cpu") -> None: ...


class Undeclared:
    def __init__(self, device: str = "cpu") -> None: ...


class OnTheCpu:
    def __init__(self, model: str = "someone/published") -> None: ...


PLUGINS = {"judge": Judge, "undeclared": Undeclared, "on_the_cpu": OnTheCpu, "function": print}


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "load_plugin", PLUGINS.__getitem__)


def found(config: RunConfig, plugin: str, device: torch.device = CUDA, **settings: Any) -> Any:
    """The bytes of one reward on a device; "none" if it puts nothing there."""
    declaration = Declaration.of(PLUGINS[plugin])
    config.rewards, config.eval_rewards = {}, {"one": RewardConfig(plugin=plugin, **settings)}
    return find_neighbours(config, {"one": declaration}, device).rewards.get("one", "none")


def test_weights_are_counted_in_the_files_of_a_folder(run_config: RunConfigMaker, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    save_file({"a": torch.zeros(3, 5, dtype=torch.float16), "b": torch.zeros(7)}, whole / "model.safetensors")
    save_file({"a": torch.zeros(3, 5)}, parts / "one.safetensors")
    save_file({"b": torch.zeros(2, 2)}, parts / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (parts / "model.safetensors.index.json").write_text(json.dumps(index))
    config = run_config()
    assert found(config, "judge", options={"model": str(whole)}) == 4 * (3 * 5 + 7), "in float32"
    assert found(config, "judge", options={"model": str(parts)}) == 4 * (3 * 5 + 2 * 2)
    assert found(config, "judge", options={"model": str(whole), "dtype": "bfloat16"}) == 2 * 22
    (parts / "two.safetensors").write_text("no weights")
    assert found(config, "judge", options={"model": str(parts)}) is None
    assert found(config, "judge", options={"model": str(tmp_path / "absent")}) is None


def test_published_model_is_known_before_it_is_fetched(run_config: RunConfigMaker) -> None:
    config = run_config()
    assert found(config, "judge") == 4 * 1000
    assert found(config, "judge", options={"model": "someone/other"}) is None


def test_rewards_elsewhere_put_nothing_onto_the_device(run_config: RunConfigMaker) -> None:
    config = run_config()
    for settings in (
        {"url": "http://there:1"},
        {"options": {"device": "cpu"}},
        {"options": {"device": "cuda:1"}},
    ):
        assert found(config, "judge", **settings) == "none"
    assert found(config, "judge", CPU, options={"device": "cpu"}) == 4 * 1000
    for device in ("cuda", "cuda:0"):
        assert found(config, "judge", options={"device": device}) == 4 * 1000
    for plugin in ("on_the_cpu", "function"):
        assert found(config, plugin) == "none"


def test_reward_that_declares_nothing_is_named_and_not_counted(run_config: RunConfigMaker) -> None:
    config = run_config()
    assert found(config, "undeclared") is None
    config.eval_rewards["two"] = RewardConfig(plugin="judge")
    config.eval_rewards["three"] = RewardConfig(plugin="judge", isolated=True)
    declared = {"one": Declaration(), "two": Declaration.of(Judge), "three": Declaration()}
    both = find_neighbours(config, declared, CUDA)
    assert both.total == 4 * 1000
    assert str(both) == "two 0 MiB, of one, three not known and not counted"
    assert str(find_neighbours(config, {}, CUDA)) == "of one, two, three not known and not counted"


@pytest.mark.parametrize("wrong", [["model"], {"model": 3}, {"model": {"someone/published": "many"}}])
def test_malformed_declaration_is_refused(wrong: Any) -> None:
    with pytest.raises(RewardError, match=r"`loads` is .* Expected options that name a model"):
        Declaration.of(type("Wrong", (), {"loads": wrong}))


@pytest.mark.parametrize(
    ("overrides", "communicators"),
    [
        ([], 0),
        (["launcher.nproc=2"], 1),
        (["launcher.nproc=2", "trainer.parallel=fsdp"], 2),
        (["launcher.nproc=4", "trainer.parallel=fsdp", "trainer.fsdp.replicas=2"], 3),
    ],
)
def test_nccl_has_buffers_for_each_communicator(
    run_config: RunConfigMaker, overrides: list[str], communicators: int
) -> None:
    config = run_config(*overrides)
    assert find_neighbours(config, {}, CUDA).nccl == communicators * NCCL
    assert find_neighbours(config, {}, CPU).nccl == 0, "gloo sends from the CPU's memory"
    assert ("NCCL up to" in str(find_neighbours(config, {}, CUDA))) is bool(communicators)


def test_neighbours_count_in_the_memory_that_a_run_needs(
    run_config: RunConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config()
    alone, beside = memory(config, SIZE), memory(config, SIZE, 10**9)
    assert beside.least - alone.least == beside.peak - alone.peak == 10**9
    monkeypatch.setattr("marble_cli.plan.memory.free_memory", lambda device: 10**8)
    check_memory(config, SIZE, CPU)
    with pytest.raises(RequestError, match=r"have rewards compute elsewhere \(rewards\.<name>\.device=cpu"):
        check_memory(config, SIZE, CPU, 10**9)
    cells = [list(column.cells) for column in tabulate_cards(config, SIZE, 30 * 2**30).columns]
    assert cells[1][0].startswith("31.")
    assert cells[2][0] == "- / -", "24 GB"
    assert cells[3][0] != "- / -"
