"""`rewards check` holds a reward to the examples that it ships."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from marble_cli.rewards.conformance import run_checks
from marble_cli.rewards.registry import build
from marble_cli.rewards.testing.calls import ContractError
from marble_cli.rewards.testing.examples import prefers_its_examples
from marble_cli.rewards.testing.samples import sample_batch

Install = Callable[..., None]

DARK, LIGHT = (Image.new("RGB", (6, 4), grey) for grey in ("black", "white"))
TENSOR = torch.full((3, 4, 4), 9, dtype=torch.uint8)


def checked(plugin: str, examples: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    reward = build("mine", plugin, {}, "cpu")
    monkeypatch.setattr(
        type(reward.plugin) if plugin == "two" else reward.plugin, "examples", examples, raising=False
    )
    return prefers_its_examples(reward, sample_batch(()))


def test_pictures_of_every_kind_are_read(
    install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(mine="brightness", two="TwoAspects")
    file = tmp_path / "light.png"
    LIGHT.save(file)
    pairs = [
        ((LIGHT, ""), (DARK, "", {"n": 1})),
        ((np.asarray(LIGHT), ""), (TENSOR, "")),
        ((str(file), ""), (file.with_name("light.png"), "")),
    ]
    assert checked("mine", lambda: pairs[:2], monkeypatch) == "2 pairs in order, 246 apart at least"
    with pytest.raises(ContractError, match="example 2: the better sample got 255, the worse one 255"):
        checked("mine", pairs, monkeypatch)
    found = checked("two", {"light": pairs[:1], "number": [((DARK, "2"), (LIGHT, "1"))]}, monkeypatch)
    assert found == "2 pairs in order, 1 apart at least"


@pytest.mark.parametrize(
    ("plugin", "examples", "said"),
    [
        ("mine", {"light": []}, r"`examples` are dict. Expected pairs"),
        ("two", [((LIGHT, ""), (DARK, ""))], "Expected a mapping from some of light, number"),
        ("two", {"number": [((DARK, "1"), (LIGHT, "nan"))]}, "example 0 of number: the better sample got 1"),
        ("mine", [(LIGHT, DARK)], "example 0: .*Expected two samples"),
        ("mine", [((LIGHT, ""), ("nowhere.png", ""))], "example 0: .*nowhere.png"),
        ("mine", [((TENSOR.float(), ""), (DARK, ""))], r"a picture is torch.float32 \[3, 4, 4\]"),
    ],
)
def test_wrong_examples_fail(
    install: Install, monkeypatch: pytest.MonkeyPatch, plugin: str, examples: Any, said: str
) -> None:
    install(mine="brightness", two="TwoAspects")
    with pytest.raises(ContractError, match=said):
        checked(plugin, examples, monkeypatch)


def test_a_reward_that_prefers_the_worse_sample_fails_the_check(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(mine="brightness")
    reward = build("mine", "mine", {}, "cpu")
    monkeypatch.setattr(reward.plugin, "examples", [((DARK, ""), (LIGHT, ""))], raising=False)
    failed = [check.name for check in run_checks(reward, sample_batch(())) if check.outcome.value == "FAIL"]
    assert failed == ["prefers its examples"]
