"""Checkpoints exist whole or not at all, and nothing damaged is loaded."""

import json
from pathlib import Path

import pytest
import torch

from marble_cli.checkpoint import store
from marble_cli.errors import CheckpointError, StorageError

LORA = {"transformer.a.lora_A.weight": torch.randn(2, 3), "transformer.a.lora_B.weight": torch.zeros(3, 2)}


def write(run: Path, step: int, *, keep_last: int = 9, best: bool = False) -> Path:
    state = store.TrainerState(
        step, {"behaviour": {"a": torch.ones(3)}, "optimizer": {}}, {"best": 0.1 + 0.2}
    )
    return store.save(run, state, LORA, {k: v + 1 for k, v in LORA.items()}, keep_last=keep_last, best=best)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    folder = write(tmp_path, 10)
    assert folder.name == "step-00000010"
    state, lora, ema = store.load(folder)
    assert (state.step, state.info, state.tensors["optimizer"]) == (10, {"best": 0.1 + 0.2}, {})
    assert torch.equal(state.tensors["behaviour"]["a"], torch.ones(3))
    assert all(torch.equal(lora[key], LORA[key]) and torch.equal(ema[key], LORA[key] + 1) for key in LORA)
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == folder.name


def flip(folder: Path) -> None:
    file = folder / "lora" / store.WEIGHTS
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def cut(folder: Path) -> None:
    file = folder / "behaviour.safetensors"
    file.write_bytes(file.read_bytes()[:-4])


def lose(folder: Path) -> None:
    (folder / "ema" / store.WEIGHTS).unlink()


def age(folder: Path) -> None:
    path = folder / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))


def escape(folder: Path) -> None:
    path = folder / "state.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../../x.safetensors"] = manifest["files"]["behaviour.safetensors"]
    path.write_text(json.dumps(manifest | {"sha256": store._own_digest(manifest)}))


def rewrite(folder: Path) -> None:
    path = folder / "state.json"
    path.write_text(path.read_text().replace('"step": 2', '"step": 7'))


def garble(folder: Path) -> None:
    (folder / "state.json").write_text("{")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (flip, "was altered"), (cut, "was cut short"), (lose, "is missing"),
        (age, "format 99"), (escape, "no tensor file"), (garble, "is damaged"), (rewrite, "was altered"),
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_refused_and_passed_over(tmp_path: Path, harm, said: str) -> None:
    older, newer = write(tmp_path, 1), write(tmp_path, 2)
    harm(newer)
    with pytest.raises(CheckpointError, match=said):
        store.load(newer)
    found, skipped = store.newest_valid(tmp_path)
    assert found == older
    assert [path for path, _ in skipped] == [newer]


def test_retention_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    for step in range(1, 6):
        write(tmp_path, step, keep_last=2, best=step == 2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert names == ["step-00000002", "step-00000004", "step-00000005"]


def test_resolve_takes_a_run_or_a_checkpoint(tmp_path: Path) -> None:
    folder = write(tmp_path, 3)
    assert store.resolve(str(tmp_path)) == store.resolve(str(folder)) == folder
    with pytest.raises(CheckpointError, match="neither a checkpoint"):
        store.resolve(str(tmp_path / "nowhere"))


def test_a_pointer_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    folder = write(tmp_path, 3)
    (tmp_path / "checkpoints" / "latest").write_text("../../elsewhere")
    assert store.resolve(str(tmp_path)) == folder


def test_a_write_that_fails_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    older = write(tmp_path, 1)
    (tmp_path / "checkpoints" / ".step-00000002.tmp").write_text("a file in the way")
    with pytest.raises(StorageError, match=r"needs about .* bytes"):
        write(tmp_path, 2)
    assert store.resolve(str(tmp_path)) == older
    store.load(older)


def test_checkpoints_after_the_one_gone_back_to_are_set_aside(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    moved = store.set_aside(tmp_path, 1)
    assert [path.name for path in moved] == ["abandoned-step-00000003", "abandoned-step-00000002"]
    assert all((path / "state.json").is_file() for path in moved)
    assert [path.name for path in store.steps(tmp_path)] == ["step-00000001"]
