"""Which texts are the same."""

import math
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from marble_reward_ocr.reward import Ocr
from marble_reward_ocr.text import FOLDS, INVISIBLE, canonical, compatible, lookalike

EQUIVALENT = [
    ("ΟΔΟΣ ΝΕΑ", "οδοςνεα"),  # a final sigma
    ("ΟΔΟΣ", "οδοσ"),
    ("caf\u00e9", "cafe\u0301"),
    ("\u00c5ngstr\u00f6m", "A\u030angstro\u0308m"),
    ("\u212b", "\u00c5"),
    ("\u2126", "\u03a9"),
    ("\u212a", "K"),
    ("\ud55c\uae00", "\u1112\u1161\u11ab\u1100\u1173\u11af"),
    ("Vi\u1ec7t", "Vie\u0323\u0302t"),
    ("Vi\u1ec7t", "Vie\u0302\u0323t"),
    ("\u304c", "\u304b\u3099"),
    ("\u0130", "I\u0307"),
    ("\u1e9b\u0323", "\u017f\u0323\u0307"),
    ("\uf900", "\u8c48"),
]
INVISIBLE_IN = [
    "\u00ad",
    "\u034f",
    "\u061c",
    "\u115f",
    "\u180e",
    "\u200b",
    "\u200c",
    "\u200d",
    "\u200e",
    "\u200f",
    "\u202a",
    "\u202c",
    "\u202e",
    "\u2060",
    "\u2063",
    "\u2066",
    "\u2069",
    "\u3164",
    "\ufe00",
    "\ufe0e",
    "\ufe0f",
    "\ufeff",
    "\uffa0",
    "\U000e0100",
    "\U000e0067",
]
COMPATIBLE = [
    ("\uff2f\uff30\uff25\uff2e", "OPEN"),
    ("\uff14\uff17", "47"),
    ("o\ufb03ce", "office"),
    ("\ufb01ne", "fine"),
    ("wait\u2026", "wait..."),
    ("m\u00b2", "m2"),
    ("\u2460", "1"),
    ("\u2122", "tm"),
    ("\uff76\uff9e", "\u30ac"),
    ("\u00a0a\u3000b", "ab"),
    ("\U0001d5d4", "A"),
    ("\u33a1", "m2"),
]
ALIKE = [
    ("it\u2019s", "it's"),
    ("\u2018a\u2019", "'a'"),
    ("\u201ca\u201d", '"a"'),
    ("5\u2032", "5'"),
    ("a\u2013b", "a-b"),
    ("a\u2014b", "a-b"),
    ("\u22125", "-5"),
    ("a\u2011b", "a-b"),
    ("3\u00d74", "3x4"),
    ("\u0421\u041e\u0420\u0415", "COPE"),
    ("\u0441\u043e\u0440\u0435", "cope"),
    ("\u0412\u0410\u041d\u041a", "BAHK"),
    ("\u0432\u0430\u043d\u043a", "BAHK"),
    ("\u0391\u0392\u0395", "ABE"),
    ("\u0399\u039f\u03a4", "iot"),
    ("1\u20442", "1/2"),
]


@pytest.mark.parametrize("fold", FOLDS.values())
@pytest.mark.parametrize(("one", "other"), EQUIVALENT)
def test_canonical_forms_are_the_same(fold: Callable[[str], str], one: str, other: str) -> None:
    assert fold(f"x{one}y") == fold(f"x{other}y")


@pytest.mark.parametrize("fold", FOLDS.values())
@pytest.mark.parametrize("letter", INVISIBLE_IN)
def test_invisible_characters_do_not_count(fold: Callable[[str], str], letter: str) -> None:
    assert fold(f"{letter}sa{letter}le{letter}") == "sale"
    assert fold(f"e{letter}\u0301") == "\u00e9"
    assert fold(letter * 3) == ""


@pytest.mark.parametrize(("one", "other"), COMPATIBLE)
def test_compatible_forms_are_the_same_by_option(one: str, other: str) -> None:
    assert compatible(one) == compatible(other)
    assert lookalike(one) == lookalike(other)
    if not one.isspace() and "\u00a0" not in one:
        assert canonical(one) != canonical(other)


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_lookalikes_are_the_same_by_option(one: str, other: str) -> None:
    assert lookalike(one) == lookalike(other)
    assert canonical(one) != canonical(other)


@pytest.mark.parametrize(
    ("one", "other"), [("0", "O"), ("1", "l"), ("e", "\u00e9"), ("\u0448", "w"), ("a", "b"), (".", ",")]
)
@pytest.mark.parametrize("fold", FOLDS.values())
def test_different_texts_stay_different(fold: Callable[[str], str], one: str, other: str) -> None:
    assert fold(one) != fold(other)


@pytest.mark.parametrize("fold", FOLDS.values())
@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_is_lower_case_without_white_space_and_no_more(fold: Callable[[str], str], text: str) -> None:
    assert fold(text) == "".join(text.lower().split())


@pytest.mark.parametrize("fold", FOLDS.values())
@given(st.text())
def test_folding_twice_is_folding_once(fold: Callable[[str], str], text: str) -> None:
    assert fold(fold(text)) == fold(text)


@given(st.text())
def test_equivalent_texts_fold_alike(text: str) -> None:
    for form in ("NFC", "NFD"):
        assert canonical(unicodedata.normalize(form, text)) == canonical(text)
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert compatible(unicodedata.normalize(form, text)) == compatible(text)


def test_visible_format_characters_count() -> None:
    """Signs of Arabic and Syriac numbers are of Unicode's category Cf, and are seen."""
    assert not INVISIBLE.search("\u0600\u06dd\u070f\u08e2\U000110bd")


def test_an_unknown_fold_is_refused() -> None:
    with pytest.raises(ValueError, match="fold='nfkc': expected one of canonical, compatible, lookalike"):
        Ocr(fold="nfkc")


@pytest.mark.parametrize(
    ("fold", "wanted", "read", "score"),
    [
        ("canonical", "cafe\u0301", "CAF\u00c9", 1.0),
        ("canonical", "sa\u00adle", "sale", 1.0),
        ("canonical", "\uff14\uff17", "47", 0.0),
        ("compatible", "\uff14\uff17", "47", 1.0),
        ("compatible", "it\u2019s", "it's", 0.75),
        ("lookalike", "it\u2019s", "it's", 1.0),
        ("canonical", "\u200b\ufeff", "47", math.nan),
    ],
)
def test_scores_follow_the_fold(
    monkeypatch: pytest.MonkeyPatch, fold: str, wanted: str, read: str, score: float
) -> None:
    reward = Ocr(fold=fold)
    images: Any = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    monkeypatch.setattr(reward, "read", lambda image: read)
    assert reward(images, ["a sign"], [{"text": wanted}]) == pytest.approx([score], nan_ok=True)
    monkeypatch.setattr(reward, "read", lambda image: wanted)
    if not math.isnan(score):
        assert np.isclose(reward(images, ["a sign"], [{"text": read}])[0] == 1.0, score == 1.0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("12\u2033 record", '12" record'),
        ("don\u00b4t", "don't"),
        ("a\u02dcb", "a~b"),
        ("\u0451lka", "\u00eblka"),
    ],
)
def test_lookalikes_that_nfkc_takes_apart_are_alike(one: str, other: str) -> None:
    assert lookalike(one) == lookalike(other)
