"""The `ocr` reward on rendered text."""

import logging
import math
import socket
from typing import Any

import marble_reward_ocr.reward as module
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from marble_reward_ocr.reward import Ocr, required_text, similarity
from marble_reward_ocr.text import FOLDS
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from marble_cli.rewards.conformance import RewardConformance


class TestOcrConformance(RewardConformance):
    plugin = "ocr"


@pytest.fixture(scope="module")
def reward() -> Ocr:
    return Ocr()


def written(text: str, height: int, width: int, size: int) -> Tensor:
    """Paint a picture of `text`: uint8 [1, 3, height, width]."""
    picture = Image.new("RGB", (width, height), (230, 226, 214))
    font = ImageFont.load_default(size)
    ImageDraw.Draw(picture).text((width / 2, height / 2), text, (20, 30, 90), font, "mm")
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None]


@pytest.mark.parametrize(
    ("prompt", "metadata", "wanted"),
    [
        ('a sign that says "Open"', {}, "Open"),
        ("a sign that says \u201cOpen now\u201d", {}, "Open now"),
        ('"one" and "two"', {}, "one"),
        ('a sign that says "Open"', {"text": "Closed"}, "Closed"),
        ("a sign that says 'Open'", {}, ""),
        ("a cat", {}, ""),
        ('an empty ""', {}, ""),
    ],
)
def test_required_text_comes_from_metadata_or_quotes(
    prompt: str, metadata: dict[str, Any], wanted: str
) -> None:
    assert required_text(prompt, metadata) == wanted


def test_metadata_that_is_no_string_is_refused(reward: Ocr) -> None:
    with pytest.raises(ValueError, match="text=48: expected a string"):
        reward(written("48", 64, 64, 30), ["a sign"], [{"text": 48}])


@pytest.mark.parametrize("text", ["МЯЧ", "Open שלום", "열림", "मेला", "Việt", "Νέα", "٤٧", "\U0001f970"])
def test_text_that_the_reader_cannot_spell_fails_and_is_no_zero(reward: Ocr, text: str) -> None:
    texts = [text, "Größe", "ΟΔΟΣ ΝΕΑ", "¡東京"]
    images = written("Open", 64, 64, 20).expand(4, -1, -1, -1)
    error, *others = reward(images, ["a sign"] * 4, [{"text": one} for one in texts])
    assert isinstance(error, ValueError)
    assert "Expected text in Latin" in str(error)
    assert all(isinstance(score, float) for score in others)


def test_lookalikes_are_read_as_the_letters_that_they_look_like() -> None:
    (score,) = Ocr(fold="lookalike")(written("BOX", 64, 128, 40), ["a sign"], [{"text": "ВОХ"}])
    assert score == 1.0


def edit_distance(one: str, other: str) -> int:
    """Levenshtein's distance by its recursion."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        above, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            above, row[j] = row[j], min(above + (a != b), row[j] + 1, row[j - 1] + 1)
    return row[-1]


@given(st.text("ab1", min_size=1, max_size=6), st.text("ab1", max_size=8))
def test_similarity_is_the_capped_edit_distance(wanted: str, read: str) -> None:
    distance = 0 if wanted in read else min(edit_distance(wanted, read), len(wanted))
    assert similarity(wanted, read) == pytest.approx(1 - distance / len(wanted))
    assert 0 <= similarity(wanted, read) <= 1


def test_case_and_white_space_do_not_matter() -> None:
    for fold in FOLDS.values():
        assert fold(" The  Open\nDoor! ") == "theopendoor!"


def test_no_text_wanted_is_not_applicable(reward: Ocr) -> None:
    images = written("47", 64, 64, 30).expand(3, -1, -1, -1)
    scores = reward(images, ["a cat", 'a "47"', 'a " "'], [{}, {}, {}])
    assert math.isnan(scores[0])
    assert scores[1] == 1.0
    assert math.isnan(scores[2])


def test_an_empty_picture_scores_nothing(reward: Ocr) -> None:
    blank = torch.full((1, 3, 64, 64), 220, dtype=torch.uint8)
    assert reward(blank, ["a sign"], [{"text": "47"}]) == [0.0]
    blank = torch.full((1, 3, 256, 256), 220, dtype=torch.uint8)
    assert reward(blank, ["a sign"], [{"text": "47"}]) == [0.0]


@pytest.mark.parametrize(("height", "width", "size"), [(256, 256, 40), (512, 512, 60), (300, 700, 50)])
def test_finds_text_in_large_pictures(reward: Ocr, height: int, width: int, size: int) -> None:
    images = written("Fresh Coffee\n  at noon", height, width, size)
    assert reward(images, ["a sign"], [{"text": "Fresh Coffee at noon"}]) == [1.0]


def test_both_ways_of_reading_agree_on_small_pictures() -> None:
    images = torch.cat([written(text, 64, 64, 34) for text in ("47", "83", "26")])
    for detect in (False, True):
        scores = Ocr(detect=detect)(images, ["a sign"] * 3, [{"text": "47"}, {"text": "83"}, {"text": "20"}])
        assert scores == [1.0, 1.0, 0.5]


def test_large_pictures_do_not_change_how_small_ones_are_read(reward: Ocr) -> None:
    small = written("47", 64, 64, 34)
    before = reward.read(small[0])
    reward.read(written("Fresh Coffee", 512, 512, 60)[0])
    assert reward.read(small[0]) == before == "47"


def test_errors_of_the_reader_are_passed_on(reward: Ocr) -> None:
    with pytest.raises(Exception, match=r"."):
        reward(torch.zeros(1, 5, 64, 64, dtype=torch.uint8), ["a sign"], [{"text": "47"}])


def test_needs_no_network(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with caplog.at_level(logging.DEBUG):
        for size in (64, 256):
            assert Ocr()(written("47", size, size, size // 2), ["a sign"], [{"text": "47"}]) == [1.0]
    assert not caplog.records


def test_an_installation_without_models_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECOGNISER", "absent.onnx")
    with pytest.raises(FileNotFoundError, match="lacks absent.onnx"):
        Ocr()


def test_reads_the_tiny_world(reward: Ocr) -> None:
    """Covers every sign, saturation and pattern; another text scores by the digits in common."""
    # Outside a checkout there is no generator of the tiny model's pictures.
    world, painter = (pytest.importorskip(f"scripts.tiny.{name}") for name in ("world", "painter"))
    random, paint = np.random.default_rng(21), painter.Painter()
    scenes = [world.random_scene(random, "text") for _ in range(60)]
    images = torch.from_numpy(np.stack([paint(scene) for scene in scenes])).permute(0, 3, 1, 2)
    prompts = [world.caption(scene) for scene in scenes]
    assert np.mean(reward(images, prompts, [{}] * len(scenes))) >= 0.98
    texts = [scene.text for scene in scenes]
    few = 20  # they are read again
    others = texts[1 : few + 1]
    expected = [similarity(other, text) for other, text in zip(others, texts[:few], strict=True)]
    scores = reward(images[:few], prompts[:few], [{"text": other} for other in others])
    assert np.mean(scores) == pytest.approx(np.mean(expected), abs=0.02)
