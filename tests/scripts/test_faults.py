"""The table of faults shows the records, and the page around it stays as it is."""

import json
from pathlib import Path

import pytest

from scripts import faults

ROWS = [
    {"fault": "SIGKILL", "times": 10, "lost": 23, "outcome": "identical", "short": "a.py, b.py"},
    {"fault": "hangs", "times": 1, "lost": None, "outcome": "masked", "short": "c.py"},
]


def test_each_record_is_a_row() -> None:
    assert faults.fault_table(ROWS).splitlines()[2:] == [
        "| SIGKILL | 10 | 23 | identical | `tests/a.py`, `tests/b.py` |",
        "| hangs | 1 | - | masked | `tests/c.py` |",
    ]


def test_only_the_part_between_the_marks_is_replaced(tmp_path: Path) -> None:
    page = (Path(faults.ROOT) / "docs" / "explanation" / "reliability.md").read_text()
    copy = tmp_path / "page.md"
    copy.write_text(page)
    for text in ("one\n", "two\n"):
        faults.replace_between_marks(text, copy)
    before, _, after = page.partition(faults.BEGIN)
    assert (
        copy.read_text() == f"{before}{faults.BEGIN}\n\ntwo\n\n{faults.END}{after.partition(faults.END)[2]}"
    )
    copy.write_text("nothing")
    with pytest.raises(ValueError, match="has no lines"):
        faults.replace_between_marks("one", copy)


def test_tests_that_the_page_names_exist() -> None:
    root = Path(faults.ROOT)
    page = (root / "docs" / "explanation" / "reliability.md").read_text().partition(faults.BEGIN)[2]
    named = {part for part in page.split("`") if part.startswith("tests/")}
    assert all((root / name).is_file() for name in named), named


def test_records_of_an_earlier_run_are_published(tmp_path: Path) -> None:
    records, page = tmp_path / "records.jsonl", tmp_path / "page.md"
    row = {
        "fault": "SIGKILL",
        "times": 2,
        "lost": 3,
        "outcome": "identical",
        "short": "a.py",
        "date": "2026-01-02",
        "seconds": 60,
    }
    records.write_text(json.dumps(row) + "\n")
    page.write_text(f"before\n{faults.BEGIN}\n{faults.END}\nafter\n")
    assert faults.main(["--records", str(records), "--output", str(page)]) == 0
    assert "| SIGKILL | 2 | 3 | identical | `tests/a.py` |" in page.read_text()
    assert "Measured on 2026-01-02" in page.read_text()


def test_a_page_without_the_marks_is_refused_before_any_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(faults, "measure", None)
    (tmp_path / "page.md").write_text("nothing")
    for name, said in (("page.md", "has no lines"), ("none.md", "No such file")):
        with pytest.raises(SystemExit):
            faults.main(["--output", str(tmp_path / name)])
        assert said in capsys.readouterr().err
