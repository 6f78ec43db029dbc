"""Full weights in several files: bounded, complete, and read only where they are needed."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from marble_cli.checkpoint import parts, store
from marble_cli.checkpoint.elsewhere import read_weights
from marble_cli.checkpoint.export import export
from marble_cli.errors import CheckpointError
from tests.checkpoint.damage import rewrite

NAMES = ("a", "b", "c", "d", "e")
WEIGHTS = "diffusion_pytorch_model"


def weights(seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(4, 8, generator=draw) for name in NAMES}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint whose files hold two tensors of 128 bytes each."""
    monkeypatch.setattr(parts, "PART_BYTES", 300)
    groups = {"behaviour": weights(3), "optimizer": weights(4), "balance": {"seen": torch.tensor(3)}}
    info = {"origin": {"transformer": {"_class_name": "SomeTransformer"}}}
    state = store.TrainerState(7, groups, info, "full")
    return store.save(tmp_path / "run", state, weights(1), weights(2), keep_last=1, best=False)


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)


def test_files_are_bounded_and_hold_every_tensor_once(folder: Path) -> None:
    files = sorted(folder.rglob("*.safetensors"))
    assert [str(file.relative_to(folder)) for file in files if "optimizer" in file.name] == [
        f"optimizer-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    ]
    for file in files:
        assert sum(tensor.nbytes for tensor in load_file(file).values()) <= 300
    trained = [
        load_file(folder / "transformer" / f"{WEIGHTS}-0000{i}-of-00003.safetensors") for i in (1, 2, 3)
    ]
    assert sorted(name for part in trained for name in part) == list(NAMES)
    assert json.loads((folder / "state.json").read_text())["format_version"] == 3


def test_one_rank_of_several_writes_all_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the main rank does with whole weights."""
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(parts, "PART_BYTES", 300)
    state = store.TrainerState(7, {"behaviour": weights(3), "optimizer": weights(4)}, {}, "full")
    written = store.save(tmp_path, state, weights(1), weights(2), keep_last=1, best=False)
    assert same(store.load(written)[1], weights(1))
    assert same(store.load(written)[0].tensors["optimizer"], weights(4))


def test_load_returns_what_was_saved(folder: Path) -> None:
    state, trained, ema = store.load(folder)
    assert same(trained, weights(1))
    assert same(ema, weights(2))
    assert same(state.tensors["behaviour"], weights(3))
    assert same(state.tensors["optimizer"], weights(4))
    assert state.tensors["balance"]["seen"].tolist() == 3
    found, average = store.load_average(folder)
    assert (found.step, found.train, found.tensors) == (7, "full", {})
    assert same(average, weights(2))


def test_shares_verify_every_file_once_and_read_all(folder: Path) -> None:
    """A flipped byte is found by the one process whose share has the file."""
    damaged = folder / "optimizer-00002-of-00003.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x7f")
    found = []
    for index in range(3):
        try:
            assert same(store.load(folder, (index, 3))[1], weights(1))
        except CheckpointError as error:
            found.append(str(error))
    assert len(found) == 1
    assert f"{damaged} was altered" in found[0]
    assert store.newest_valid(folder.parent.parent)[0] is None


def test_average_is_read_without_the_moments(folder: Path) -> None:
    moments = folder / "optimizer-00002-of-00003.safetensors"
    moments.write_bytes(b"\x7f" * moments.stat().st_size)
    assert same(store.load_average(folder)[1], weights(2))
    average = folder / "ema" / f"{WEIGHTS}-00003-of-00003.safetensors"
    average.write_bytes(average.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(CheckpointError, match=f"{re.escape(str(average))} was altered"):
        store.load_average(folder)


@pytest.mark.parametrize("group", ["transformer/", "ema/", ""])
def test_missing_part_is_named(folder: Path, group: str) -> None:
    name = f"{group}{WEIGHTS if group else 'behaviour'}-00001-of-00003.safetensors"
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{re.escape(str(folder / name))} is missing"):
        store.load(folder)
    rewrite(folder, lambda content: content["files"].pop(name))
    if group:  # a manifest that agrees: the tensors are missing, as the policy will say
        assert len(store.load(folder)[1]) + len(store.load(folder)[2]) == 2 * len(NAMES) - 2


def test_export_writes_an_index_that_finds_every_tensor(folder: Path, tmp_path: Path) -> None:
    index = export(str(folder), tmp_path / "out")
    assert index == tmp_path / "out" / "transformer" / f"{WEIGHTS}.safetensors.index.json"
    found = read_weights(index.parent)
    assert same(found.tensors, weights(2))
    assert found.config == {"_class_name": "SomeTransformer"}
    assert json.loads(index.read_text())["metadata"] == {"total_size": 5 * 128}
    with pytest.raises(Exception, match="exists and is not overwritten"):
        export(str(folder), tmp_path / "out")


def test_reading_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    """64 MB of weights are mapped; the process's own memory grows by less than 8 MB."""
    groups = {"behaviour": {}, "optimizer": {"a": torch.ones(8 * 2**20)}}
    state = store.TrainerState(1, groups, {}, "full")
    one = {"a": torch.ones(4 * 2**20)}
    folder = store.save(tmp_path, state, one, one, keep_last=1, best=False)
    del one, state, groups
    before = anonymous_bytes()
    loaded = store.load(folder, (1, 2))
    assert anonymous_bytes() - before < 8 * 2**20
    assert loaded[1]["a"][-1] == 1


def anonymous_bytes() -> int:
    rows = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return int(rows["Anonymous"].split()[0]) * 1024


def test_small_weights_are_one_file_of_the_format_before(tmp_path: Path) -> None:
    state = store.TrainerState(1, {"behaviour": weights(3), "optimizer": {}}, {}, "full")
    folder = store.save(tmp_path, state, weights(1), weights(2), keep_last=1, best=False)
    assert json.loads((folder / "state.json").read_text())["format_version"] == 2
    assert same(load_file(folder / "transformer" / f"{WEIGHTS}.safetensors"), weights(1))
    save_file(weights(1), tmp_path / "expected.safetensors", {"format": "pt"})
    expected = (tmp_path / "expected.safetensors").read_bytes()
    assert (folder / "transformer" / f"{WEIGHTS}.safetensors").read_bytes() == expected


def test_files_have_the_rights_of_any_new_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    assert len({file.stat().st_mode for file in tmp_path.rglob("*") if file.is_file()}) == 1
