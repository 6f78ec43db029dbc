"""Any text becomes a caption that is drawn literally and fits."""

from pathlib import Path

import matplotlib
import pytest
from matplotlib import font_manager
from matplotlib import pyplot as plt
from rich.cells import cell_len

from marble_cli.metrics import captions
from marble_cli.metrics.captions import ABSENT, caption, fonts
from marble_cli.metrics.figures import image_grid, styled
from tests.metrics.odd_text import IMAGES, ODD

pytestmark = pytest.mark.usefixtures("new_fonts")


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
