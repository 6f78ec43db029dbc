"""Every script runs from its command line to its last line, at its smallest size and in this process."""

import ast
from pathlib import Path

import pytest
import torch

from scripts import demo, gradient_agreement
from tests.scripts.smallest import BRIEF, FEWER, REWARDS, SMALL, run_in_process

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))
SMOKE_TESTS = {
    "scripts.bench": "test_bench.py",
    "scripts.bench.parallel": "test_bench.py",
    "scripts.bench.sd35m": "test_bench.py",
    "scripts.bench.small_cards": "test_bench_small_cards.py",
    "scripts.demo": "test_smoke.py",
    "scripts.editing": "test_editing.py",
    "scripts.faults": "test_faults.py",
    "scripts.gradient_agreement": "test_smoke.py",
    "scripts.minimal_loop": "test_minimal_loop.py",
    "scripts.models": "../docs/test_models_page.py",
    "scripts.reference": "test_reference.py",
    "scripts.study": "test_study.py",
    "scripts.study.hacking": "test_hacking.py",
    "scripts.study.hacking_report": "test_hacking.py",
    "scripts.study.report": "test_study.py",
    "scripts.study.runner": "test_study.py",
    "scripts.tiny.pretrain": "test_tiny.py",
    "scripts.tiny.pretrain_edit": "test_tiny_edit.py",
}


def module_name(file: Path) -> str:
    """Return the name to import or run a script by."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] in ("__init__", "__main__") else parts)


def imported_modules(file: Path) -> set[str]:
    """Return the modules, and names in modules, that a file imports."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


def is_program(file: Path) -> bool:
    return '__name__ == "__main__"' in file.read_text()


def test_every_program_has_a_smoke_test() -> None:
    assert {module_name(file) for file in SCRIPTS if is_program(file)} == SMOKE_TESTS.keys()
    for name, test in SMOKE_TESTS.items():
        imported = imported_modules(Path(__file__).parent / test)
        assert imported & {name, f"{name}.__main__"}, f"{test} does not import {name}"


def test_every_part_of_a_program_is_imported_by_a_script() -> None:
    imported = set().union(*(imported_modules(file) for file in SCRIPTS))
    parts = {module_name(file) for file in SCRIPTS if not is_program(file) and file.stem != "__init__"}
    assert parts - imported == set()


def test_no_script_changes_the_import_path() -> None:
    assert [file for file in SCRIPTS if "sys.path" in file.read_text()] == []


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    commands = run_in_process(monkeypatch, demo)
    monkeypatch.setattr(demo, "EVAL_PROMPTS", 2)
    assert demo.main(["--directory", str(tmp_path / "run"), *SMALL, *FEWER, *BRIEF]) == 0
    assert [command[0] for command in commands] == ["train", "eval", "report"]
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*REWARDS, "base", "trained", "curves:", "report:"))
    for picture in ("images.png", "curves.png", "report.html"):
        assert (tmp_path / "run" / picture).stat().st_size > 1000


def test_gradient_agreement(capsys: pytest.CaptureFixture[str]) -> None:
    gradient_agreement.main(["--steps", "2", *SMALL, *FEWER])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["training", "times", *REWARDS]
    assert len(lines) == 3  # as configured, and the only time before the last
    values = [float(word) for line in lines[1:] for word in line.split()[-2:]]
    assert all(-1 <= value <= 1 for value in values)


def test_agreement_of_equal_and_of_orthogonal_gradients() -> None:
    one, other = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([-2.0, 1.0, 0.0])
    steps = torch.stack([torch.stack([one, one]), torch.stack([3 * one, other])])  # [S=2, K=2, P=3]
    assert gradient_agreement.agreement(steps).tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
