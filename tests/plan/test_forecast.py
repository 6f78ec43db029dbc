"""What a dry run tells of what a run would meet later: the disk, the cache, metadata of another type."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub.constants
import pytest

from marble_cli.config.compose import compose
from marble_cli.config.schema import RunConfig
from marble_cli.data.prompts import Prompt
from marble_cli.errors import ConfigError, RequestError
from marble_cli.plan.forecast import checkpoints, fetched_into, unsound
from marble_cli.plan.plan import plan
from marble_cli.policy.source import EMBEDDED
from marble_cli.rewards.api import Declaration
from tests.plan import small_model

RunConfigMaker = Callable[..., RunConfig]
SIZE = replace(small_model.SIZE, trained=10**6)
EACH = 20 * 10**6  # five float32 copies of what is trained


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda count: monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, count))


def test_forecast_counts_the_checkpoints_that_a_run_keeps(
    run_config: RunConfigMaker,
    free: Callable[[int], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free(10**12)
    keys = ("trainer.checkpoint_every=10", "trainer.keep_last=2")
    many = run_config("trainer.steps=100", *keys)
    assert checkpoints(many, SIZE, tmp_path) == "about 19 MiB each, 76 MiB with those that are kept"
    assert "19 MiB each, 38 MiB" in checkpoints(run_config("trainer.steps=10", *keys), SIZE, tmp_path)
    apart = run_config("trainer.steps=100", "trainer.keep_every=20", *keys)
    assert "19 MiB each, 172 MiB" in checkpoints(apart, SIZE, tmp_path)
    full = run_config("trainer.steps=10", "model.train=full", *keys)
    assert checkpoints(full, SIZE, tmp_path).endswith(
        "beside training, from a copy of 19 MiB in the CPU's memory"
    )
    with monkeypatch.context() as patch:
        patch.setattr("marble_cli.plan.memory.free_memory", lambda device: EACH)
        assert "; training waits for each: the CPU's memory has no room" in checkpoints(full, SIZE, tmp_path)
    free(3 * EACH)
    assert checkpoints(many, SIZE, tmp_path).endswith("MORE THAN IS FREE: lower trainer.keep_last")
    assert checkpoints(apart, SIZE, tmp_path).endswith("lower trainer.keep_last or raise trainer.keep_every")
    free(EACH - 1)
    with pytest.raises(
        RequestError, match=r"run\.dir=.* a checkpoint takes about 20,000,000 bytes, and 19,999,999 are free"
    ):
        checkpoints(many, SIZE, tmp_path)


def test_model_of_the_hub_needs_a_writable_cache(
    run_config: RunConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fetched_into(run_config().model) is None
    away = run_config("model.path=nobody/nowhere-0").model
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert str(fetched_into(away)).startswith(f"{tmp_path / 'hub'} (")
    (tmp_path / "file").touch()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(RequestError, match="HF_HUB_CACHE=.* cannot be written"):
        fetched_into(away)


def prompts(*texts: Any, source: str = "text") -> dict[str, list[Prompt]]:
    rows = {
        name: [Prompt(f"sign {i}", {"text": text}, name) for i, text in enumerate(texts)]
        for name in (source,)
    }
    return {**{name: [Prompt("a cup", {}, name)] for name in ("general", "compositional", "text")}, **rows}


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ("str", 13, "metadata text=13: expected a string"),
        ("str", 47.0, "metadata text=47.0: expected a string"),
        ("str", True, "metadata text=True: expected a string"),
        ("str", ["a"], "expected a string"),
        ("int", "4", "expected a whole number"),
        ({"list": "str"}, "abc", "expected a list"),
        ({"list": {"dict": {"class": "str"}}}, [{"class": 1}], "metadata text[0].class=1: expected a string"),
    ],
)
def test_metadata_of_a_wrong_type_is_reported_with_its_prompt(
    run_config: RunConfigMaker, kind: Any, value: Any, said: str
) -> None:
    good = {"str": "a", "int": 4}.get(kind, []) if isinstance(kind, str) else []
    config = run_config()
    declarations = {name: Declaration() for name in config.rewards}
    name = next(iter(config.rewards))
    declarations[name] = Declaration(requires=("text",), types={"text": kind})
    rows = {"train": prompts(good, value, good, value), "test": prompts(good)}
    (line,) = unsound(config, declarations, rows)
    assert line.startswith(f"rewards.{name} fails on 2 of the 4 train prompts that it applies to: ")
    assert said in line
    assert line.endswith("the first in data.sources.text, 'sign 1'")
    assert not list(unsound(config, declarations, {"train": prompts(good), "test": prompts(good)}))
    with pytest.raises(
        ConfigError, match=rf"fails on 1 of the 1 test prompts .*leave the reward out: ~rewards\.{name}"
    ):
        list(unsound(config, declarations, {"train": prompts(good), "test": prompts(value)}))


def test_reward_without_declared_types_accepts_any_metadata(run_config: RunConfigMaker) -> None:
    config = run_config()
    declarations = {name: Declaration(requires=("text",)) for name in config.rewards}
    rows = {"train": prompts(1, "a", None), "test": prompts([])}
    assert not list(unsound(config, declarations, rows))


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("vae/diffusion_pytorch_model.safetensors", "vae holds no weights"),
        ("transformer/diffusion_pytorch_model.safetensors", "transformer holds no weights"),
        ("tokenizer/tokenizer.json", "tokenizer has no vocabulary"),
        ("tokenizer_2/tokenizer_config.json", "tokenizer_2"),
    ],
)
def test_plan_refuses_a_model_folder_with_a_missing_file(tmp_path: Path, gone: str, said: str) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(EMBEDDED, folder)
    (folder / gone).unlink()
    config = compose(
        ["rewards=[colorfulness,compressibility]", f"model.path={folder}", f"run.dir={tmp_path / 'run'}"]
    )
    with pytest.raises(RequestError, match=said):
        plan(config)
    assert not (tmp_path / "run").exists()


def test_plan_refuses_a_link_that_leads_out_of_the_run_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path)
    with pytest.raises(RequestError, match="checkpoints is a link that leads out of the folder"):
        plan(compose(["rewards=[colorfulness,compressibility]", f"run.dir={tmp_path / 'run'}"]))
