"""Any prompt or name can be drawn; a failure to draw is only a warning."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import matplotlib
import pytest
import torch
from matplotlib import font_manager
from matplotlib import pyplot as plt
from matplotlib.text import Text
from PIL import Image
from rich.cells import cell_len

from marble_cli.config.compose import compose
from marble_cli.data.prompts import Prompt
from marble_cli.evaluate.score import Evaluation
from marble_cli.explain.analysis import explain
from marble_cli.explain.figures import draw
from marble_cli.metrics import captions, figures
from marble_cli.metrics.captions import ABSENT, caption, fonts
from marble_cli.metrics.figures import curves, image_grid, styled, try_to_draw
from marble_cli.metrics.history import read_history
from marble_cli.rewards.scorer import Scores
from marble_cli.run.recorder import RunRecorder
from marble_cli.run.state import Progress

ODD = {
    "dollars": 'a sign that says "$5 or $6"',
    "one dollar": "$5",
    "unclosed": "$\\frac{1}{",
    "escaped": "\\$5 and \\\\ and $$",
    "powers": "x^2 and y_{i} and 5 % & #1 ~",
    "unknown command": "$\\nosuchcommand$",
    "percent": "100% %s {0} {}",
    "han": "山の上の家、雪",
    "hangul": "한글 \u1112\u1161\u11ab",
    "thai": "กาลครั้งหนึ่ง",
    "devanagari": "नमस्ते",
    "arabic": "مرحبا بالعالم",
    "only in the light face": "\U0001d5a0\u0751",
    "hebrew": "שלום \u202eעולם\u202c",
    "emoji": "👩\u200d👩\u200d👧 \u2764\ufe0f 🇫🇷",
    "accents": "Vie\u0323\u0302t cafe\u0301" + "\u0301" * 50,
    "controls": "a\0b\x1b[31mc\x07\x7f\x85",
    "line ends": "a\nb\r\nc\td\u2028e\u2029f",
    "surrogates": "\ud800 \udfff",
    "private": "\ue000\U000f0000\uffff",
    "unseen": "\ufeff\u200b\u00ad\u2066",
    "replacement": "\ufffd □",
    "long": "a red cube " * 3000,
    "one word": "x" * 100_000,
    "wide": "山" * 5000,
    "empty": "",
    "blank": " \n ",
    "underscore": "_hidden",
    "markup": "[red]a[/red] <b>",
}
IMAGES = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Clear the caches of fonts and warnings around every test."""
    known = list(font_manager.fontManager.ttflist)
    for cached in (captions._family, captions._families, captions._letters, captions._warn_once):
        cached.cache_clear()
    yield
    font_manager.fontManager.ttflist[:] = known
    for cached in (captions._family, captions._families, captions._letters, captions._warn_once):
        cached.cache_clear()


def shown(text: str, columns: int = 26, lines: int = 4) -> list[str]:
    """Draw a caption and return its lines; warnings are errors."""
    made = caption(text, columns, lines)
    with styled([text]):
        figure = plt.figure()
        figure.text(0, 0, made)
        figure.suptitle(made, weight="bold")
        figure.canvas.draw()
    return made.split("\n")


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_any_text_is_drawn_and_fits(text: str) -> None:
    lines = shown(text)
    assert len(lines) <= 4
    assert all(cell_len(line) <= 26 for line in lines)


@pytest.mark.parametrize(
    "name",
    [
        "dollars",
        "one dollar",
        "unclosed",
        "escaped",
        "powers",
        "unknown command",
        "percent",
        "underscore",
        "markup",
    ],
)
def test_mathematics_is_drawn_literally(name: str) -> None:
    assert " ".join(shown(ODD[name])) == ODD[name]


def test_mathematics_stays_off_despite_matplotlibrc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    assert shown("$5") == ["$5"]


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("a\0b\x1bc", "a\ufffdb\ufffdc"),
        ("a\nb\r\nc\td\u2028e\x85f", "a b c d e f"),
        ("\ufeffa\u200bb\u00adc\u202ed\ufe0f", "abcd"),
        ("e\u0301", "é"),
        ("x" + "\u0301" * 50 + "y", "x" + "\u0301" * 3 + "y"),
        ("\ud800\ue000", "\ufffd\ufffd"),
        ("", ""),
    ],
)
def test_invisible_and_control_characters_are_replaced(text: str, made: str) -> None:
    assert caption(text, 26, 4) == made


def test_letters_without_a_font_become_boxes_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    captions._families.cache_clear()
    letter = "\U0002a6d6"  # of CJK's extension B
    assert captions._family(letter) is None
    assert shown(f"a {letter}{letter} b") == [f"a {ABSENT}{ABSENT} b"]
    assert shown(letter) == [ABSENT]
    told = [record.getMessage() for record in caplog.records if record.name == "marble"]
    assert len(told) == 1
    assert "are in no installed font and appear as □ in pictures" in told[0]


def test_literal_box_gives_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert shown("□") == ["□"]
    assert not caplog.records


def install(path: Path, name: str, letters: str) -> None:
    """Write a font with a square for each of `letters`, and register it with matplotlib."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    for move, place in (
        ("moveTo", (0, 0)),
        ("lineTo", (0, 700)),
        ("lineTo", (700, 700)),
        ("lineTo", (700, 0)),
    ):
        getattr(pen, move)(place)
    pen.closePath()
    square = pen.glyph()
    glyphs = [".notdef", *(f"g{index}" for index in range(len(letters)))]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(glyphs)
    builder.setupCharacterMap({ord(letter): f"g{index}" for index, letter in enumerate(letters)})
    builder.setupGlyf(dict.fromkeys(glyphs, square))
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (800, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2(usWeightClass=400)
    builder.setupPost()
    builder.save(path)
    font_manager.fontManager.addfont(path)
    captions._families.cache_clear()


def test_installed_font_provides_its_letters(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    install(tmp_path / "one.ttf", "Some Sans CJK", "山川")
    install(tmp_path / "two.ttf", "Another Serif", "海山")
    assert fonts(["山 and a $"])["font.family"] == [captions.FONT, "Some Sans CJK"]
    assert fonts(["海山"])["font.family"] == [captions.FONT, "Another Serif", "Some Sans CJK"]
    assert shown("山川海 and Latin") == ["山川海 and Latin"]
    assert not caplog.records
    image_grid([("山", IMAGES)], ["川海"], tmp_path / "grid.png")


def test_unreadable_fonts_are_skipped(tmp_path: Path) -> None:
    install(tmp_path / "broken.ttf", "Broken Sans", "山")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    assert shown("山 a") == ["□ a"]
    install(tmp_path / "gone.ttf", "Gone Sans", "川")
    (tmp_path / "gone.ttf").unlink()
    captions._family.cache_clear()
    assert shown("川 a") == ["□ a"]


def test_long_text_ends_with_an_ellipsis() -> None:
    lines = shown("a red cube " * 3000)
    assert lines[0] == "a red cube a red cube a"
    assert [line.endswith(" …") for line in lines] == [False, False, False, True]
    assert shown("x" * 30, columns=10, lines=2) == ["xxxxxxxxxx", "xxxxxxxx …"]
    assert shown("exactly as long", columns=15, lines=1) == ["exactly as long"]


# ---- pictures


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_image_grid_draws_any_prompt_and_label(tmp_path: Path, text: str) -> None:
    image_grid([(text, IMAGES), ("base", IMAGES)], [text], tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        assert min(picture.size) > 100


@pytest.mark.parametrize("name", [name for name in ODD.values() if name.strip() and "/" not in name][:26:3])
def test_curves_and_explanations_draw_any_name(tmp_path: Path, name: str) -> None:
    other = "ocr"
    row: dict[str, Any] = {"phase": "train", "balance/refresh": 1, "balance/gap": 0.0, "time/step": 1.0}
    for k, reward in enumerate((name, other)):
        row |= {
            f"reward/{reward}/mean": 0.1 + k,
            f"balance/alpha/{reward}": 0.5,
            f"balance/cosine/{reward}": 0.3 - k,
            f"reward/{reward}/std": 0.1,
            f"reward/{reward}/applicable": 4,
            f"balance/grad_norm/{reward}": 1.0,
            f"balance/weight/{reward}": 0.5,
        }
    row |= {f"balance/pair_cosine/{name}/{other}": -0.5}
    rows = [{**row, "step": 1}, {**row, "step": 2}]
    for step in (1, 2):
        means = {key: value for key, value in row.items() if key.endswith("/mean")}
        rows.append({**means, "step": step, "phase": "eval"})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    history = read_history(tmp_path)
    drawn, left_out = draw(history, explain(history), tmp_path / "explain")
    assert {path.name for path in drawn} >= {"shares.png", "cosines.png", "pareto.png"}
    assert not [reason for reason in left_out if not reason.startswith("conflict.png")]


def test_drawing_failure_warns_and_leaves_no_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "grid.png"
    errors: list[Exception] = [
        ValueError("ParseException"),
        RuntimeError("x"),
        MemoryError(),
        UserWarning("glyph"),
        OSError(28, "No space left on device"),
    ]
    for error in errors:
        file.write_bytes(b"of an earlier call")

        def fail(*rest: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(Text, "draw", fail)
        try_to_draw(file, "All is well.", lambda: image_grid([("a", IMAGES)], ["a"], file))
        assert not file.exists()
    told = [record for record in caplog.records if record.name == "marble"]
    assert [record.levelno for record in told] == [logging.WARNING] * len(errors)
    assert all(record.getMessage().startswith(str(file)) for record in told)
    assert all(record.getMessage().endswith("All is well.") for record in told)
    assert plt.get_fignums() == []


def test_failed_picture_of_an_explanation_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {
        "phase": "train",
        "balance/refresh": 1,
        "reward/ocr/mean": 1.0,
        "balance/alpha/ocr": 1.0,
        "balance/cosine/ocr": 1.0,
    }
    lines = [{**row, "step": step} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def fail(history: Any) -> None:
        plt.figure()
        raise RuntimeError("matplotlib is out of order")

    monkeypatch.setattr("marble_cli.explain.figures.shares", fail)
    history = read_history(tmp_path)
    drawn, left_out = draw(history, explain(history), tmp_path / "explain")
    assert [path.name for path in drawn] == ["cosines.png"]
    assert "shares.png, RuntimeError: matplotlib is out of order" in left_out
    assert plt.get_fignums() == []


def test_styled_leaves_other_figures_open() -> None:
    mine = plt.figure()
    with styled([]):
        plt.figure()
    assert plt.get_fignums() == [mine.number]
    plt.close(mine)


def test_package_draws_all_text_without_mathematics() -> None:
    """All drawing goes through `styled`: nothing else opens a style context or a figure."""
    folder = Path(figures.__file__).parents[1]
    users = {
        str(path.relative_to(folder)): path.read_text("utf-8").count("rc_context")
        for path in folder.rglob("*.py")
        if "pyplot" in path.read_text("utf-8")
    }
    assert users == {"explain/figures.py": 0, "metrics/figures.py": 1}


def test_run_continues_if_sample_pictures_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Kept:
        """A stand-in for the W&B side of a run."""

        captions: ClassVar[list[str]] = []

        def images(self, step: int, images: torch.Tensor, captions: list[str]) -> None:
            self.captions += captions

    evaluation = Evaluation([Prompt("$5", {}, "text")], IMAGES, Scores([], *[torch.zeros(0, 1)] * 3))
    config = compose(["preset=tiny", "logging.images_every=1"])
    recorder = RunRecorder(config, tmp_path, Progress.__new__(Progress), main=True)
    recorder.wandb = Kept()  # type: ignore[assignment]
    recorder.pictures(1, evaluation, first=True)
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["step-00000001", "step-00000001.png"]

    def fail(*rest: Any) -> None:
        raise RuntimeError("matplotlib is out of order")

    monkeypatch.setattr("marble_cli.run.recorder.image_grid", fail)
    recorder.pictures(2, evaluation, first=False)
    assert "step-00000002.png could not be drawn: RuntimeError: matplotlib is out of order" in caplog.text
    assert "The run continues without these pictures." in caplog.text
    assert Kept.captions == ["$5", "$5"]
