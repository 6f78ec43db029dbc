"""Checkpoints exist whole or not at all, and nothing damaged is loaded."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from marble_cli.checkpoint import manifest, step_folders, store
from marble_cli.errors import CheckpointError, StorageError
from tests.checkpoint.damage import COMMON, RARE, add, cut, flip, garble, link_folder, lose, pickled, rewrite

LORA = {"transformer.a.lora_A.weight": torch.randn(2, 3), "transformer.a.lora_B.weight": torch.zeros(3, 2)}


def write(run: Path, step: int, *, keep_last: int = 9, best: bool = False, keep_every: int = 0) -> Path:
    state = store.TrainerState(
        step, {"behaviour": {"a": torch.ones(3)}, "optimizer": {}}, {"best": 0.1 + 0.2}
    )
    ema = {k: v + 1 for k, v in LORA.items()}
    return store.save(run, state, LORA, ema, keep_last=keep_last, best=best, keep_every=keep_every)


def kept(run: Path) -> list[int]:
    return sorted(store.step_of(folder) for folder in store.steps(run))


def test_manifest_decides_between_whole_weights_and_a_lora(tmp_path: Path) -> None:
    state = store.TrainerState(3, {}, {}, "full")
    folder = store.save(tmp_path, state, {"a": torch.ones(2)}, {"a": torch.zeros(2)}, keep_last=1, best=False)
    back, trained, ema = store.load(folder)
    assert (back.train, trained["a"].tolist(), ema["a"].tolist()) == ("full", [1, 1], [0, 0])
    assert {str(file.relative_to(folder)) for file in folder.rglob("*.safetensors")} == {
        "transformer/diffusion_pytorch_model.safetensors",
        "ema/diffusion_pytorch_model.safetensors",
    }
    rewrite(folder, lambda content: content["files"].pop("ema/diffusion_pytorch_model.safetensors"))
    with pytest.raises(CheckpointError, match="does not list ema/diffusion_pytorch_model.safetensors"):
        store.load(folder)


def test_load_returns_what_was_saved(tmp_path: Path) -> None:
    folder = write(tmp_path, 10)
    assert folder.name == "step-00000010"
    state, lora, ema = store.load(folder)
    assert (state.step, state.info, state.tensors["optimizer"]) == (10, {"best": 0.1 + 0.2}, {})
    assert torch.equal(state.tensors["behaviour"]["a"], torch.ones(3))
    assert all(torch.equal(lora[key], LORA[key]) and torch.equal(ema[key], LORA[key] + 1) for key in LORA)
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == folder.name


@pytest.mark.parametrize(("harm", "said"), (COMMON | RARE).values(), ids=(COMMON | RARE).keys())
def test_damaged_checkpoint_is_refused_and_passed_over(tmp_path: Path, harm, said: str) -> None:
    run = tmp_path / "run"
    older, newer = write(run, 1), write(run, 2)
    harm(newer)
    with pytest.raises(CheckpointError, match=re.escape(said)) as error:
        store.load(newer)
    assert "step-00000002" in str(error.value)
    found, skipped = store.newest_valid(run)
    assert found == older
    assert [path for path, _ in skipped] == [newer]
    assert not (run / "checkpoints" / "unpickled").exists()


def test_retention_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    for step in range(1, 6):
        write(tmp_path, step, keep_last=2, best=step == 2)
    assert kept(tmp_path) == [2, 4, 5]


def test_retention_keeps_multiples_of_keep_every(tmp_path: Path) -> None:
    for step in range(1, 10):
        write(tmp_path, step, keep_last=1, keep_every=3, best=step == 2)
    assert kept(tmp_path) == [2, 3, 6, 9]
    write(tmp_path, 10, keep_last=1)
    assert kept(tmp_path) == [2, 10]


@pytest.mark.parametrize("harm", [cut, lose, add, garble, link_folder])
def test_damaged_checkpoints_are_not_counted_as_kept(tmp_path: Path, harm) -> None:
    """Those that are newer than whole ones must not push these out."""
    run = tmp_path / "run"
    for step in (1, 2, 3):
        write(run, step)
    harm(run / "checkpoints" / "step-00000003")
    write(run, 4, keep_last=2)
    assert kept(run) == [2, 3, 4]
    store.load(run / "checkpoints" / "step-00000002")
    write(run, 5, keep_last=1)
    assert kept(run) == [5]
    assert not list((run / "checkpoints").glob(".*"))


def test_only_valid_checkpoint_stays_beside_newer_damaged_ones(tmp_path: Path) -> None:
    """A flipped byte changes no size; what was written now was read back, and stays."""
    flip(write(tmp_path, 8))
    flip(write(tmp_path, 9))
    valid = write(tmp_path, 3, keep_last=1)
    assert store.newest_valid(tmp_path)[0] == valid


def test_checkpoint_that_reads_back_differently_deletes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, good = write(tmp_path, 1), manifest.write

    def bad_disk(folder: Path, *rest: Any) -> None:
        good(folder, *rest)
        flip(folder)

    monkeypatch.setattr(manifest, "write", bad_disk)
    with pytest.raises(StorageError, match="reads back differently.*untouched.*was altered") as error:
        write(tmp_path, 2, keep_last=1)
    assert error.value.exit_code == 1
    assert store.resolve(str(tmp_path)) == older
    assert store.newest_valid(tmp_path)[0] == older


def test_weights_that_are_not_finite_delete_nothing(tmp_path: Path) -> None:
    older = write(tmp_path, 1)
    state = store.TrainerState(2, {}, {})
    bad = LORA | {"transformer.a.lora_A.weight": torch.full((2, 3), torch.nan)}
    with pytest.raises(StorageError, match="transformer.a.lora_A.weight of ema.* is not finite"):
        store.save(tmp_path, state, LORA, bad, keep_last=1, best=True)
    assert store.newest_valid(tmp_path) == (older, [])


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    (folder.parent / ".step-00000002.tmp" / "lora").mkdir(parents=True)
    (folder.parent / ".latest.tmp").write_text("st")
    (folder.parent / ".step-00000003.tmp").symlink_to(folder)
    step_folders.remove_leftovers(tmp_path)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["latest", "step-00000001"]
    store.load(folder)


def test_resolve_takes_a_run_or_a_checkpoint(tmp_path: Path) -> None:
    folder = write(tmp_path, 3)
    assert store.resolve(str(tmp_path)) == store.resolve(str(folder)) == folder
    assert store.resolve(str(folder.with_name("latest"))) == folder
    folder.with_name("best").write_text("step-00000099\n")
    with pytest.raises(CheckpointError, match="best is neither"):
        store.resolve(str(folder.with_name("best")))
    with pytest.raises(CheckpointError, match="neither a checkpoint"):
        store.resolve(str(tmp_path / "nowhere"))


def test_pointer_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    folder = write(tmp_path, 3)
    (tmp_path / "checkpoints" / "latest").write_text("../../elsewhere")
    assert store.resolve(str(tmp_path)) == folder
    (tmp_path / "checkpoints" / "latest").write_bytes(b"\xff" * 10**6)
    assert store.resolve(str(tmp_path)) == folder


@pytest.mark.parametrize("name", ["model.pt", "last.ckpt", "pytorch_model.bin", "weights"])
def test_pickled_file_is_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / "theirs" / name
    file.parent.mkdir()
    file.write_bytes(pickled(file))
    for given in (file, file.parent) if file.suffix else (file,):
        with pytest.raises(CheckpointError, match=f"{name} is a pickled file. marble never unpickles"):
            store.resolve(str(given))
    torch.save({"a": torch.ones(1)}, file.with_name("archive"))
    with pytest.raises(CheckpointError, match="archive is a pickled file"):
        store.resolve(str(file.with_name("archive")))
    assert not (file.parent.parent / "unpickled").exists()


def test_checkpoints_after_the_resumed_step_are_set_aside(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    moved = step_folders.set_aside(tmp_path, 1)
    assert [path.name for path in moved] == ["abandoned-step-00000003", "abandoned-step-00000002"]
    assert all((path / "state.json").is_file() for path in moved)
    assert kept(tmp_path) == [1]
    write(tmp_path, 2)
    assert [path.name for path in step_folders.set_aside(tmp_path, 1)] == ["abandoned-step-00000002-2"]


def test_what_a_kill_leaves_while_figures_are_changed_does_no_harm(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    (folder / ".state.json.tmp").write_text("{")
    assert store.newest_valid(tmp_path) == (folder, [])
    manifest.amend(folder, {"best": 0.5})
    assert store.load(folder)[0].info["best"] == 0.5
    assert not (folder / ".state.json.tmp").exists()


def test_run_without_a_best_says_so(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"best: no evaluation has exceeded the run's start yet"):
        store.resolve(str(folder.with_name("best")))


def test_best_pointer_is_restored_after_going_back(tmp_path: Path) -> None:
    best = tmp_path / "checkpoints" / "best"
    for step in (1, 2, 3):
        write(tmp_path, step, best=step != 2)
    step_folders.set_aside(tmp_path, 2)
    assert not best.exists()
    step_folders.point_best(tmp_path, 1)
    assert best.read_text() == "step-00000001\n"
    step_folders.point_best(tmp_path, 2)  # the kill came before this pointer was written
    assert best.read_text() == "step-00000002\n"
    for step in (9, None):  # no such checkpoint, and none that is known
        step_folders.point_best(tmp_path, step)
        assert best.read_text() == "step-00000002\n"
