"""Cached embeddings are the encoders' own, wherever these are, and damaged files are made anew."""

import errno
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from marble_cli.config.enums import Precision
from marble_cli.config.schema import ModelConfig
from marble_cli.errors import StorageError
from marble_cli.policy.load import load_policy

PROMPTS = ["a red cup", 'a sign that says "47"', "a red cup", ""]


@pytest.fixture
def cached(model: ModelConfig, tmp_path: Path) -> Any:
    return load_policy(replace(model, embedding_cache=str(tmp_path / "cache")), seed=0)


@pytest.fixture
def calls(cached: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The prompts of every call of the encoders."""
    seen: list[list[str]] = []
    encode = cached.family.encode
    monkeypatch.setattr(
        cached.family, "encode", lambda prompts: seen.append(list(prompts)) or encode(prompts)
    )
    return seen


def same(one: Any, other: Any) -> None:
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(tensor, other.tensors[name], rtol=1e-5, atol=1e-6)


def without_file(cache: Any) -> list[str]:
    """The prompts without a file."""
    return [prompt for prompt in dict.fromkeys(PROMPTS) if not cache.file(prompt).is_file()]


def test_cached_embeddings_equal_the_encoders_own(cached: Any, policy: Any) -> None:
    same(cached.encode(PROMPTS), policy.encode(PROMPTS))


def test_every_prompt_is_encoded_once(cached: Any, calls: list[list[str]]) -> None:
    cached.prepare(PROMPTS[:3])
    assert calls == [[PROMPTS[0]], [PROMPTS[1]]]
    cached.encode(PROMPTS[:2])
    assert len(calls) == 2
    cached.encode(PROMPTS)
    assert calls[2:] == [[""]]


def test_cache_is_shared_with_other_runs_of_the_same_precision(
    cached: Any, model: ModelConfig, tmp_path: Path
) -> None:
    cached.prepare(PROMPTS)
    again: Any = load_policy(replace(model, embedding_cache=str(tmp_path / "cache")), seed=5)
    assert without_file(again.cache) == []
    half: Any = load_policy(
        replace(model, embedding_cache=str(tmp_path / "cache"), precision=Precision.bf16), seed=0
    )
    assert without_file(half.cache) == list(dict.fromkeys(PROMPTS))


def test_cache_of_other_encoders_is_not_used(
    cached: Any, model: ModelConfig, pipeline_folder: Path, tmp_path: Path
) -> None:
    cached.prepare(PROMPTS)
    shutil.copytree(pipeline_folder, tmp_path / "other")
    encoder = cached.family.encoders[1]
    with torch.no_grad():
        encoder.text_projection.weight.mul_(1.001)
    encoder.save_pretrained(tmp_path / "other" / "text_encoder_2")
    other: Any = load_policy(
        replace(model, path=str(tmp_path / "other"), embedding_cache=str(tmp_path / "cache")), seed=0
    )
    assert len(without_file(other.cache)) == 3


def test_cache_of_other_tokenizers_configurations_or_libraries_is_not_used(
    cached: Any, model: ModelConfig, pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(folder: Path) -> int:
        path, cache = str(folder), str(tmp_path / "cache")
        other: Any = load_policy(replace(model, path=path, embedding_cache=cache), seed=0)
        return len(without_file(other.cache))

    cached.prepare(PROMPTS)
    copies = [tmp_path / name for name in ("copy", "shorter", "steeper")]
    for copy in copies:
        shutil.copytree(pipeline_folder, copy)
    for file, key, value in (
        (copies[1] / "tokenizer" / "tokenizer_config.json", "model_max_length", 12),
        (copies[2] / "text_encoder" / "config.json", "layer_norm_eps", 0.1),
    ):
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    assert [missing(copy) for copy in copies] == [0, 3, 3]
    monkeypatch.setattr("marble_cli.policy.embeddings.version", lambda library: "0")
    assert missing(pipeline_folder) == 3


def test_folder_that_cannot_be_written_is_named(cached: Any, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(
        StorageError, match=r"cache/\S+ could not be written: Not a directory.*embedding_cache"
    ):
        cached.prepare(PROMPTS)


def test_full_disk_is_reported_and_leaves_no_partial_file(
    cached: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached.prepare(PROMPTS[:1])

    def full(path: Path, content: bytes) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(StorageError, match="could not be written: No space left on device"):
            cached.encode(PROMPTS)
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert files == [cached.cache.file(PROMPTS[0])]
    assert without_file(cached.cache) == [PROMPTS[1], ""]


def test_cache_files_have_default_permissions(cached: Any, tmp_path: Path) -> None:
    """A cache may serve several people."""
    cached.prepare(PROMPTS)
    (tmp_path / "plain").touch()
    assert cached.cache.file(PROMPTS[0]).stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("damage", [lambda whole: whole[:40], lambda whole: b"", lambda whole: b"\xff" * 90])
def test_damaged_file_is_encoded_again(
    cached: Any, policy: Any, calls: list[list[str]], damage: Callable[[bytes], bytes]
) -> None:
    cached.prepare(PROMPTS)
    file = cached.cache.file(PROMPTS[1])
    file.write_bytes(damage(file.read_bytes()))
    same(cached.encode(PROMPTS), policy.encode(PROMPTS))
    assert calls[3:] == [[PROMPTS[1]]]


def test_encoders_leave_the_device_after_an_error(cached: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[tuple[Any, Any]] = []
    for encoder in cached.family.encoders:
        monkeypatch.setattr(encoder, "to", lambda device, e=encoder: moves.append((e, device)))
    there = [(encoder, cached.device) for encoder in cached.family.encoders]
    with suppress(ZeroDivisionError), cached._encoders_on_device():
        assert moves == there
        raise ZeroDivisionError
    assert moves == there + [(encoder, "cpu") for encoder in cached.family.encoders]
