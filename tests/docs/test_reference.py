"""The reference pages say what the code does."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from marble_cli.metrics.jsonl import read_rows
from marble_cli.run.train import train
from scripts.reference.__main__ import DOCS, PAGES
from scripts.reference.metrics_page import METRICS
from tests.conftest import RunConfigMaker

PACKAGE = Path(__file__).parents[2] / "marble_cli"
EMITTERS = ("step", "balance", "run", "evaluate")
KEY = re.compile(
    r"(reward|advantage|signal|policy|balance|loss|behaviour|optimizer|alarm|eval|time|throughput)"
    r"(/(<name>|[a-z_]+))+"
)
LONE = {"step", "phase", "grad_norm", "skipped"}
PATTERNS = {
    metric: re.compile(re.sub(r"<[kl]>", "[^/]+", metric.key)) for metric in METRICS
}  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_page_is_what_make_reference_writes(page: str) -> None:
    assert (DOCS / page).read_text(encoding="utf-8") == PAGES[page](), (
        f"{page} is out of date: make reference"
    )


def literals(tree: ast.AST) -> Iterator[str]:
    """Yield every text of a module, with <name> for what is filled in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "<name>" for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_metrics_of_the_code_are_the_documented_ones() -> None:
    written = {
        text
        for room in EMITTERS
        for file in (PACKAGE / room).rglob("*.py")
        for text in literals(ast.parse(file.read_text(encoding="utf-8")))
        if text in LONE or KEY.fullmatch(text)
    }
    assert written == {re.sub(r"<[kl]>", "<name>", metric.key) for metric in METRICS}


@pytest.mark.parametrize(
    "overrides",
    [
        ["balance=marble", "balance.refresh_every=2", "trainer.steps=3", "trainer.eval_every=3"],
        ["balance=marble", "balance.mode=full", "balance.refresh_fraction=0.5"],
        ["balance=output_space", "balance.refresh_every=2"],
        ["balance=weighted_sum"],
        ["balance=equal", "+eval_rewards.watched={plugin: colorfulness}", "trainer.eval_every=2"],
    ],
    ids=["amortised", "full", "output_space", "weighted_sum", "watched"],
)
def test_every_key_of_a_run_is_documented_for_its_phase(
    overrides: list[str], run_config: RunConfigMaker, tmp_path: Path
) -> None:
    assert train(run_config(*overrides, f"run.dir={tmp_path}"), resume="never") == 0
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert rows
    for row in rows:
        for key in row:
            phases = [metric.phases for metric, pattern in PATTERNS.items() if pattern.fullmatch(key)]
            assert any(row["phase"] in phase for phase in phases), f"{key} of {row['phase']} rows"
    for metric, pattern in PATTERNS.items():
        if metric.when in ("every step", "every row"):
            having = [row for row in rows if row["phase"] in metric.phases]
            assert all(any(pattern.fullmatch(key) for key in row) for row in having), metric.key
