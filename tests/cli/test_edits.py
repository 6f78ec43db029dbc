"""Models that start from a picture, from the command line: plan, two steps, an export and an edit.

test_image_editing.py does the same, and more, with FLUX.1 Kontext.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Outcome
from tests.policy.conftest import tiny_folder
from tests.policy.families.cases import Case
from tests.policy.families.conftest import case, edits_folder, small_pictures

__all__ = ["case", "edits_folder", "small_pictures", "tiny_folder"]


@pytest.mark.parametrize("case", ["qwen_image_edit", "flux2_klein"], indirect=True)
def test_plan_two_steps_export_and_an_edit(
    case: Case, base_overrides: list[str], edits_folder: Path, marble: Callable[..., Outcome], tmp_path: Path
) -> None:
    overrides = ("~preset", *base_overrides, *case.overrides, f"run.dir={tmp_path / 'run'}")
    planned = marble("train", *overrides, "--dry-run")
    assert planned.code == 0, planned.err
    assert "parameters, LoRA" in " ".join(planned.out.split())
    trained = marble("train", *overrides)
    assert trained.code == 0, trained.err
    assert (tmp_path / "run/checkpoints/step-00000002").is_dir()
    exported = marble("export", tmp_path / "run", tmp_path / "lora")
    assert exported.code == 0, exported.err
    assert (tmp_path / "lora/pytorch_lora_weights.safetensors").is_file()
    given = next(edits_folder.glob("one/*.png"))
    drawn = marble(
        "generate", tmp_path / "run", "--prompt", "blue", "--image", given, "--output", tmp_path / "out"
    )
    assert drawn.code == 0, drawn.err
    size = tuple(map(int, case.tiny.resolution.split("x")))
    with Image.open(tmp_path / "out/000.png") as picture:
        assert picture.size == size
