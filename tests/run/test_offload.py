"""Runs with offloaded blocks: the same bits as without, also when one resumes; refused where they cannot."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from marble_cli.config.schema import RunConfig
from marble_cli.errors import ConfigError
from marble_cli.run.train import train
from tests.run.runs import SETTINGS, assert_same_run, copied

RunConfigMaker = Callable[..., RunConfig]
OFFLOAD, KEEP = "model.offload=blocks", "model.gradient_checkpointing=true"


def test_it_changes_no_bit_of_a_run_and_may_change_when_one_resumes(
    run_config: RunConfigMaker, tmp_path: Path
) -> None:
    folders = {name: tmp_path / name for name in ("plain", "offloaded", "resumed")}
    for name, setting in (("plain", KEEP), ("offloaded", OFFLOAD)):
        config = run_config(f"run.dir={folders[name]}", *SETTINGS, setting, "trainer.steps=4")
        assert train(config, resume="auto") == 0
    assert_same_run(folders["offloaded"], folders["plain"])
    copied(folders["plain"], folders["resumed"])
    shutil.rmtree(folders["resumed"] / "checkpoints" / "step-00000004")
    config = run_config(f"run.dir={folders['resumed']}", *SETTINGS, OFFLOAD, "trainer.steps=4")
    assert train(config, resume="auto") == 0
    assert_same_run(folders["resumed"], folders["plain"])


@pytest.mark.parametrize(
    "other",
    [
        "model.train=full",
        "trainer.parallel=fsdp",
        "model.quantization=int8",
        "model.gradient_checkpointing=false",
    ],
)
def test_it_is_refused_where_weights_have_to_stay(run_config: RunConfigMaker, other: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.offload=blocks.*{other}.*Expected "):
        run_config(OFFLOAD, other)
