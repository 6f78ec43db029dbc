"""A run that is started where another lies is told which keys differ, and which of them may."""

import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from marble_cli.checkpoint.resume import ABSENT, Difference, differences, find_checkpoint
from marble_cli.config.compose import dump
from marble_cli.config.schema import RunConfig
from marble_cli.errors import RequestError
from marble_cli.plan.plan import plan
from marble_cli.run.train import train

RunConfigMaker = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def plain(run_config: RunConfigMaker) -> RunConfig:
    return run_config()


OTHERWISE = [
    ("optimizer.lr=0.5", ["optimizer.lr: 0.0003 there, 0.5 now"]),
    ("balance=mgda", ["balance.name: marble there, mgda now"]),
    ("model.guidance=2", ["model.guidance: null there, 2.0 now"]),
    ("rewards.compressibility.quality=50", ["rewards.compressibility.quality: new"]),
    ("rewards.colorfulness.requires=[text]", ['rewards.colorfulness.requires: [] there, ["text"] now']),
    ("~rewards.compressibility", ["rewards.compressibility: there, and not now"]),
    ("+rewards.third={plugin: colorfulness}", ["rewards.third: new"]),
    (
        "rewards=[compressibility,colorfulness]",
        [
            'the order of rewards: ["colorfulness", "compressibility"] there, '
            '["compressibility", "colorfulness"] now'
        ],
    ),
    ("data.root=" + "x" * 99, [re.compile(r"data\.root: /\S+ there, [^ ]+\.\.\. now")]),
    ("+rewards.colorfulness.api_key=abcdef", ["rewards.colorfulness.api_key: new"]),
    ("algorithm.training_noise=image", ["algorithm.training_noise: group there, image now"]),
]


@pytest.mark.parametrize(("override", "said"), OTHERWISE)
def test_differences_are_listed(
    run_config: RunConfigMaker, plain: RunConfig, override: str, said: list[str | re.Pattern[str]]
) -> None:
    found = [str(one) for one in differences(plain, run_config(override)) if not one.may_change]
    assert len(found) == len(said)
    for words, expected in zip(found, said, strict=True):
        assert re.fullmatch(expected if isinstance(expected, re.Pattern) else re.escape(expected), words)


def test_moved_run_with_moved_data_may_resume(run_config: RunConfigMaker, tmp_path: Path) -> None:
    """Paths are absolute; one that is gone may have another in its place, and one that is there may not."""
    places = [tmp_path / name for name in ("before", "after", "third")]
    for place in places:
        place.mkdir()
    there, now, third = (run_config(f"data.root={place}") for place in places)
    assert [str(one) for one in differences(there, now) if not one.may_change] != []
    places[0].rmdir()
    (moved,) = differences(there, now)
    assert (moved.key, moved.may_change) == ("data.root", True)
    places[2].rmdir()
    assert not all(one.may_change for one in differences(there, third))


def test_secrets_are_not_shown_in_differences() -> None:
    for key in ("rewards.judge.api_key", "rewards.judge.token", "rewards.judge.password"):
        assert str(Difference(key, "abc", "abcd", False)) == f"{key}: (not shown) there, (not shown) now"
    assert "abc" not in str(Difference("rewards.judge.api_key", ABSENT, "abc", False))


def test_message_lists_keys_that_must_not_change_before_those_that_may(
    run_config: RunConfigMaker, plain: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(dump(plain))
    before = (tmp_path / "config.yaml").read_bytes()
    other = run_config("optimizer.lr=0.5", "trainer.steps=9", "logging.images_every=3", f"run.dir={tmp_path}")
    expected = (
        f"{tmp_path} belongs to a run with another configuration ({tmp_path}/config.yaml). "
        "Nothing was changed. "
        "Keys that must not change:\n"
        "  optimizer.lr: 0.0003 there, 0.5 now\n"
        "Keys that may change: trainer.steps: 2 there, 9 now; logging.images_every: 0 there, 3 now.\n"
        "Choose another folder with run.dir=..., or resume that run: "
        f"marble train --config-name {tmp_path}/config.yaml"
    )
    for command in (partial(train, other, resume="auto"), partial(plan, other)):  # a dry run says the same
        with pytest.raises(RequestError) as refused:
            command()
        assert str(refused.value) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_many_differences_are_counted(run_config: RunConfigMaker, plain: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(dump(plain))
    more = [f"+rewards.r{number}={{plugin: colorfulness}}" for number in range(20)]
    with pytest.raises(RequestError, match=r"rewards\.r11: new\n  and 8 more\n"):
        find_checkpoint(tmp_path, run_config(*more), "auto")


def test_dry_run_names_the_checkpoint_it_would_resume_from(
    run_config: RunConfigMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = f"run.dir={tmp_path}"
    plan(run_config(run))
    assert "at step 1" in capsys.readouterr().out
    assert train(run_config(run, "trainer.steps=1"), resume="auto") == 0
    capsys.readouterr()
    plan(run_config(run))
    assert "after step 1: " in capsys.readouterr().out
    copy = shutil.copytree(tmp_path / "checkpoints" / "step-00000001", tmp_path / "copied")
    plan(run_config(f"run.dir={tmp_path / 'new'}"), str(copy))
    assert "after step 1: " in capsys.readouterr().out
    with pytest.raises(RequestError, match="--resume never"):
        plan(run_config(run), "never")
