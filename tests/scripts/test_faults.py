"""The table of faults says what was recorded, and leaves the page around it as it is."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import faults

ROWS = [
    {"fault": "SIGKILL", "times": 10, "lost": 23, "outcome": "identical", "short": "a.py, b.py"},
    {"fault": "hangs", "times": 1, "lost": None, "outcome": "masked", "short": "c.py"},
]


def test_a_row_a_record() -> None:
    assert faults.table(ROWS).splitlines()[2:] == [
        "| SIGKILL | 10 | 23 | identical | `tests/a.py`, `tests/b.py` |",
        "| hangs | 1 | - | masked | `tests/c.py` |",
    ]


def test_the_page_has_a_place_for_the_table(tmp_path: Path) -> None:
    page = (Path(faults.ROOT) / "docs" / "reliability.md").read_text()
    copy = tmp_path / "page.md"
    copy.write_text(page)
    for text in ("one\n", "two\n"):
        faults.put(text, copy)
    before, _, after = page.partition(faults.BEGIN)
    assert (
        copy.read_text() == f"{before}{faults.BEGIN}\n\ntwo\n\n{faults.END}{after.partition(faults.END)[2]}"
    )
    copy.write_text("nothing")
    with pytest.raises(ValueError, match="has no lines"):
        faults.put("one", copy)


def test_what_stands_for_a_fault_exists() -> None:
    """The tests that records name are there."""
    root = Path(faults.ROOT)
    page = (root / "docs" / "reliability.md").read_text().partition(faults.BEGIN)[2]
    named = {part for part in page.split("`") if part.startswith("tests/")}
    assert all((root / name).is_file() for name in named), named
