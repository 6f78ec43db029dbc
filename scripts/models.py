"""Write the tables of docs/models.md: what the package plans, and what the battery of every family found.

`python -m scripts.models` runs tests/policy/families, which takes some minutes, and stops if a test fails.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from marble_cli.config.compose import choices, compose
from marble_cli.config.schema import ModelConfig
from marble_cli.policy.model_size import ModelSize
from marble_cli.policy.size import model_size
from marble_cli.policy.source import ASSETS, read_json

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "models.md"
BATTERY = "tests/policy/families"
SIZES = (
    *("`model.path`", "`model=`", "network", "LoRA", "text encoders", "VAE", "side", "tokens"),
    *("forward pass", "kept for the gradient", "kept with checkpointing"),
)
# The columns of the table of proofs: what a case records, and the column's header.
PROOFS = {
    "embeddings": "embeddings",
    "velocities": "velocities",
    "alone": "alone and in a batch",
    "pictures": "pictures",
    "guided latents": "guided latents",
    "guided pictures": "guided pictures",
    "gradients": "gradients",
    "bfloat16": "bfloat16",
    "resumed": "resumed",
    "trained pictures": "trained pictures",
    "exports": "exports",
}


def main() -> None:
    """Write both tables into the page."""
    proofs = proof_table(run_battery())
    text = put(PAGE.read_text(encoding="utf-8"), "sizes", size_table())
    PAGE.write_text(put(text, "proofs", proofs), encoding="utf-8")


def put(text: str, name: str, lines: Iterable[str]) -> str:
    """Return `text` with the lines between the markers of the table `name`."""
    begin, end = f"<!-- {name}: made by python -m scripts.models -->", f"<!-- {name} end -->"
    found = re.compile(rf"({re.escape(begin)}\n).*?({re.escape(end)})", re.DOTALL)
    if not found.search(text):
        raise SystemExit(f"{PAGE} has no markers of the table {name}. Expected {begin} and {end}.")
    return found.sub(lambda match: match[1] + "\n" + "\n".join(lines) + "\n\n" + match[2], text)


def run_battery() -> dict[str, dict[str, float]]:
    """Run the battery and return the largest differences, by case and proof.

    Raises:
        SystemExit: a test fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "differences.json"
        options = ["-n", "0", "-q", "-p", "no:cacheprovider", "--differences", str(file)]
        command = [sys.executable, "-m", "pytest", BATTERY, *options]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            raise SystemExit(f"{BATTERY} has failures, so {PAGE} stays as it is.")
        differences: dict[str, dict[str, float]] = json.loads(file.read_text(encoding="utf-8"))
    return differences


def proof_table(differences: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Yield the lines of a table of cases and proofs; a dash stands for a proof that the case leaves out."""
    yield f"| case | {' | '.join(PROOFS.values())} |"
    yield "|---" * (len(PROOFS) + 1) + "|"
    for case, found in differences.items():
        cells = [written(found[proof]) if proof in found else "-" for proof in PROOFS]
        yield f"| `{case}` | {' | '.join(cells)} |"


def written(difference: float) -> str:
    """Write a difference with one digit; 0 is none at all."""
    return f"{difference:.0e}".replace("e-0", "e-") if difference else "0"


def size_table() -> Iterator[str]:
    """Yield the lines of a table of the models whose configurations are in the package."""
    yield f"| {' | '.join(SIZES)} |"
    yield "|---" * len(SIZES) + "|"
    for path, choice in planned():
        model = replace(configured(choice), path=path)
        size = model_size(model)
        assert size is not None, path
        yield f"| {path} | `{choice}` | {' | '.join(figures(model, size))} |"


def figures(model: ModelConfig, size: ModelSize) -> Iterator[str]:
    """Yield the cells of a model's size, in the order of the table's header."""
    for count in (size.network, size.trained, size.encoders, size.vae):
        yield f"{count / 1e9:.2f} B" if count >= 1e8 else f"{count / 1e6:.0f} M"
    yield f"{model.resolution} px"
    yield str(size.tokens)
    yield f"{float(f'{size.cost.forward / 1e12:.2g}'):g} TFLOP"
    for kept in (size.cost.kept, size.cost.kept_checkpointed):
        yield f"{float(f'{kept / 2**30:.2g}'):g} GiB"


def planned() -> list[tuple[str, str]]:
    """Return the models whose configurations are in the package, and their choices of conf/model."""
    by_kind = {"QwenImageEditPipeline": "qwen_image_edit"}  # whose own path has the later class
    folders = {folder.name.replace("--", "/", 1): folder for folder in sorted((ASSETS / "models").iterdir())}
    kinds = {path: read_json(folder / "model_index.json")["_class_name"] for path, folder in folders.items()}
    for choice in choices("model"):
        path = configured(choice).path
        if path in kinds:
            by_kind[kinds[path]] = choice
    return sorted(((path, by_kind[kind]) for path, kind in kinds.items()), key=lambda row: row[::-1])


def configured(choice: str) -> ModelConfig:
    """Return a choice of conf/model as it is without further settings."""
    return compose([f"model={choice}", "~preset", "data.root=.", "run.dir=unused"]).model


if __name__ == "__main__":
    main()
