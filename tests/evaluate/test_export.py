"""Judge and export checkpoints, those of the first release alike; an export overwrites nothing."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from marble_cli.checkpoint.export import export
from marble_cli.checkpoint.formats import ExportFormat
from marble_cli.errors import CheckpointError, RequestError
from marble_cli.evaluate.evaluate import evaluate
from marble_cli.evaluate.generate import generate
from tests.checkpoint.damage import relist
from tests.checkpoint.format_1 import rewrite_in_format_1

LORA, EMA = (f"checkpoints/step-00000002/{name}/pytorch_lora_weights.safetensors" for name in ("lora", "ema"))


@pytest.fixture(scope="module")
def older(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, its checkpoints in the format of the first release."""
    folder = tmp_path_factory.mktemp("older") / "demo"
    shutil.copytree(run, folder)
    for step in (1, 2):
        rewrite_in_format_1(folder / "checkpoints" / f"step-0000000{step}")
    return folder


def test_a_checkpoint_of_format_1_is_judged_drawn_and_exported_alike(
    run: Path, older: Path, tmp_path: Path
) -> None:
    assert (
        load_file(older / EMA)["transformer.transformer_blocks.0.attn.to_q.lora_B.weight"]
        .ne(load_file(run / EMA)["transformer.transformer_blocks.0.attn.to_q.lora_B.weight"])
        .all()
    )
    now, then = (evaluate(str(folder), [], [], None) for folder in (run, older))
    assert now.rewards == then.rewards
    pictures = [
        generate(str(folder), ["a red cup"], tmp_path / folder.parent.name, 0)[0] for folder in (run, older)
    ]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    for form in ExportFormat:
        files = [
            export(str(folder), tmp_path / folder.parent.name / form.value, form) for folder in (run, older)
        ]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_lora_without_alpha_is_not_guessed_at(older: Path, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    shutil.copytree(older, folder)
    save_file(load_file(folder / LORA), folder / LORA)
    relist(folder / "checkpoints" / "step-00000002", "lora/pytorch_lora_weights.safetensors")
    with pytest.raises(CheckpointError, match="does not state the alpha of its LoRA"):
        export(str(folder), tmp_path / "exported")


@pytest.mark.parametrize("form", list(ExportFormat))
def test_an_export_overwrites_nothing(run: Path, tmp_path: Path, form: ExportFormat) -> None:
    file = export(str(run), tmp_path, form)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for path in before:
        others = before.keys() - {path}
        for other in others:
            other.unlink()
        with pytest.raises(RequestError, match=f"{path.name} exists and is not overwritten"):
            export(str(run), tmp_path, form)
        assert list(tmp_path.iterdir()) == [path]
        for other in others:
            other.write_bytes(before[other])
    assert file in before
