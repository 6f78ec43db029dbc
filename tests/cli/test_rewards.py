"""`marble rewards`: which settings a name means, and what becomes of a failure."""

import json
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from marble_cli.cli.rewards.selection import select_rewards
from marble_cli.plugins import installed

MINE = "+rewards.mine={plugin: colorfulness}"


@pytest.mark.parametrize("names", [["hpsv2"], ["hpsv2", "mine"], ["mine", "hpsv2"]])
def test_a_choice_has_the_defaults_of_its_file(names: Sequence[str]) -> None:
    rewards, _ = select_rewards([*names], [MINE, "rewards.hpsv2.isolated=true", "rewards.hpsv2.retries=7"])
    assert [*rewards] == names
    assert rewards["hpsv2"].options == {"model": str(Path("models/hpsv2").absolute())}
    assert (rewards["hpsv2"].timeout, rewards["hpsv2"].retries) == (300, 7)


def test_a_reward_given_whole_ignores_its_file() -> None:
    rewards, _ = select_rewards(["hpsv2"], ["+rewards.hpsv2={plugin: colorfulness, timeout: 1}"])
    assert (rewards["hpsv2"].plugin, rewards["hpsv2"].timeout, rewards["hpsv2"].options) == (
        "colorfulness",
        1,
        {},
    )


def test_a_choice_that_is_not_installed_is_named(marble: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = {name: entry for name, entry in installed().items() if name != "ocr"}
    for module in ("config.compose", "config.validate", "rewards.registry"):
        monkeypatch.setattr(f"marble_cli.{module}.installed", lambda: lacking)
    shown = marble("rewards", "check", "ocr")
    assert shown.code == 2
    assert "rewards.ocr.plugin=ocr: no such reward is installed" in shown.err
    shown = marble("rewards", "show", "compressibility", "rewards.compressibility.qality=1")
    assert shown.code == 2
    assert "rewards.compressibility.qality: no such option; did you mean 'quality'?" in shown.err


def raises(images: object) -> None:
    """Fails always."""
    raise RuntimeError("out of memory")


@pytest.mark.parametrize("more", [(), ("rewards.mine.max_failed=1",)])
def test_a_failure_exits_1_without_an_outcome(
    marble: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, more: tuple[str, ...]
) -> None:
    with_mine = {**installed(), "mine": EntryPoint("mine", f"{__name__}:raises", "marble.rewards")}
    for module in ("config.compose", "config.validate", "rewards.registry"):
        monkeypatch.setattr(f"marble_cli.{module}.installed", lambda: with_mine)
    monkeypatch.setattr(EntryPoint, "load", lambda entry: raises)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    arguments = (
        "rewards",
        "score",
        "mine",
        "--image",
        tmp_path / "a.png",
        "--prompt",
        "a",
        "rewards.mine.retries=0",
    )
    shown = marble(*arguments, *more, "--json")
    assert shown.code == 1
    assert not shown.out
    assert "RuntimeError: out of memory" in shown.err


def test_score_prints_the_outcome_as_json(marble: Callable, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "a.png")
    shown = marble(
        "rewards", "score", "colorfulness", "--image", tmp_path / "a.png", "--prompt", "a", "--json"
    )
    assert json.loads(shown.out) == {"reward": "colorfulness", "outcome": "score", "score": 0.0}
    pictures = ("--image", tmp_path / "a.png", "--condition", tmp_path / "a.png")
    assert marble("rewards", "score", "keeping", *pictures, "--prompt", "a").out == "keeping: 0\n", "not -0"


@pytest.mark.parametrize("content", [b"", b"<svg/>", None])
def test_a_picture_that_cannot_be_read_is_one_message(
    marble: Callable, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "a.png"
    if content is None:
        Image.new("F", (2, 2)).save(file, format="TIFF")
    else:
        file.write_bytes(content)
    shown = marble("rewards", "score", "colorfulness", "--image", file, "--prompt", "a")
    assert shown.code == 2
    assert shown.err.count("\n") == 1
    assert str(file) in shown.err
    assert not shown.out


def test_a_picture_that_gets_no_score_is_told_why(marble: Callable, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(file)
    shown = marble(
        *("rewards", "score", "keeping", "--image", file, "--condition", file, "--prompt", "a"),
        *("--metadata", '{"region": "left"}'),
    )
    assert (shown.code, shown.out) == (1, "")
    assert "marble: reward keeping gave no score: prompt 'a': metadata region='left': expected" in shown.err
    assert "resume" not in shown.err


def test_transparent_pixels_are_scored_as_white(marble: Callable, tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(tmp_path / "a.png")
    shown = marble(
        "rewards", "score", "colorfulness", "--image", tmp_path / "a.png", "--prompt", "a", "--json"
    )
    assert json.loads(shown.out)["score"] == 0.0


class Light:
    """Two aspects of a picture."""

    aspects = ("level", "none")

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        return {"level": images.float().mean((1, 2, 3)), "none": torch.full((len(images),), torch.nan)}


def test_the_scores_of_all_aspects_are_shown(
    marble: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_mine = {**installed(), "mine": EntryPoint("mine", f"{__name__}:Light", "marble.rewards")}
    for module in ("config.compose", "config.validate", "rewards.registry"):
        monkeypatch.setattr(f"marble_cli.{module}.installed", lambda: with_mine)
    Image.new("L", (8, 8), 7).save(tmp_path / "a.png")
    arguments = ("rewards", "score", "mine", "--image", str(tmp_path / "a.png"), "--prompt", "x")
    shown = marble(*arguments)
    assert shown.out == "mine.level: 7\nmine.none: not applicable\n"
    shown = marble(*arguments, "--json", "rewards.mine.aspects={level: {weight: 2}}")
    assert json.loads(shown.out) == [{"reward": "mine.level", "outcome": "score", "score": 7.0}]


class Wide:
    """Has parameters that are no options."""

    def __init__(self, *rest: object, level: int = 7, margin: float = 0.5, device: str = "cpu") -> None:
        raise NotImplementedError

    def __call__(self, images: Tensor) -> Tensor:
        raise NotImplementedError


def test_show_lists_the_options_that_a_configuration_can_set(
    marble: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = {"mine": EntryPoint("mine", f"{__name__}:Wide", "marble.rewards")}
    for module in ("plugins", "config.compose", "config.validate", "rewards.registry"):
        monkeypatch.setattr(f"marble_cli.{module}.installed", lambda: mine)
    shown = marble("rewards", "show", "mine").out.splitlines()
    assert [line.split()[1:] for line in shown if line.startswith("option ")] == [["level", "7"]]


def test_the_list_shows_aspects_below_their_reward(marble: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = {"mine": EntryPoint("mine", f"{__name__}:Light", "marble.rewards")}
    for module in ("plugins", "rewards.registry"):
        monkeypatch.setattr(f"marble_cli.{module}.installed", lambda: mine)
    lines = marble("rewards", "list").out.splitlines()
    assert [line.split("  ")[0].rstrip() for line in lines] == ["reward", "mine", "", ""]
    assert [line.strip().split()[0] for line in lines[2:]] == [".level", ".none"]
    (row,) = json.loads(marble("rewards", "list", "--json").out)["rewards"]
    assert (row["name"], row["aspects"], row["requires"]) == ("mine", ["level", "none"], [])
