"""docs/models.md has every family, every model that the package plans, and a result of every case."""

import re

import pytest

from marble_cli.config.compose import choices
from marble_cli.config.embedded import WORLDS
from marble_cli.policy.source import ASSETS
from scripts.models import PAGE, PROOFS, proof_table, put, written
from tests.policy.families.pipelines import ONE_UNET, TINY

TEXT = PAGE.read_text(encoding="utf-8")


def rows(name: str) -> dict[str, list[str]]:
    """Return the rows of a made table by their first cells."""
    made = re.search(rf"<!-- {name}: made.*?-->(.*?)<!-- {name} end -->", TEXT, re.DOTALL)
    assert made is not None
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in made[1].split("\n") if line]
    return {line[0]: line[1:] for line in lines[2:]}


def test_every_case_has_every_proof() -> None:
    found = rows("proofs")
    assert found.keys() == {f"`{case}`" for case in TINY}
    for case in TINY:
        cells = found[f"`{case}`"]
        assert len(cells) == len(PROOFS)
        assert all(re.fullmatch(r"0|\de-\d+", cell) for cell in cells if cell != "-")
        # The pipeline of flux2 takes no negative prompt.
        assert ("-" in cells) == (case not in ONE_UNET or case == "flux2")


def test_every_planned_model_has_its_size() -> None:
    paths = {folder.name.replace("--", "/", 1) for folder in (ASSETS / "models").iterdir()}
    assert rows("sizes").keys() == paths


@pytest.mark.parametrize("choice", [name for name in choices("model") if name not in WORLDS])
def test_every_family_is_described(choice: str) -> None:
    families = TEXT[TEXT.index("## Families") :]
    assert f"| `{choice}` |" in families


def test_a_table_is_put_between_its_markers_alone() -> None:
    text = "a\n<!-- x: made by python -m scripts.models -->\nold\n<!-- x end -->\nb"
    lines = list(proof_table({"case": {"gradients": 2.4e-7, "resumed": 0.0}}))
    once = put(text, "x", lines)
    assert "old" not in once
    assert "| `case` | - | - | - | - | - | - | 2e-7 | - | 0 | - | - |" in once
    assert put(once, "x", lines) == once
    assert once.startswith("a\n")
    assert once.endswith("b")
    assert written(0.004) == "4e-3"
    with pytest.raises(SystemExit, match="no markers of the table y"):
        put(text, "y", lines)
