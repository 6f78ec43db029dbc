"""A policy gives its family the pictures of prompts, and caches the embeddings of each pair once."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from marble_cli.config.schema import ModelConfig
from marble_cli.policy import source
from marble_cli.policy.embeddings import fingerprint
from marble_cli.policy.load import load_policy

PROMPTS = ["make it red", "make it red", "make it blue", "make it red"]


@dataclass(frozen=True)
class Flat:
    """A picture of one grey."""

    grey: int

    @property
    def digest(self) -> str:
        return str(self.grey)

    @property
    def size(self) -> tuple[int, int]:
        return 16, 48

    def pixels(self, width: int, height: int) -> Tensor:
        return torch.full((3, height, width), self.grey, dtype=torch.uint8)


PICTURES = [(Flat(1),), (Flat(2),), (Flat(1),), (Flat(1),)]


@pytest.fixture
def editing(model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(source.FAMILIES, "StableDiffusion3Pipeline", "tests.policy.editing:EditingSD3")
    return load_policy(replace(model, embedding_cache=str(tmp_path / "cache")), seed=0)


@pytest.mark.parametrize("negative", [False, True])
def test_each_pair_of_prompt_and_picture_is_encoded_once(
    editing: Any, monkeypatch: pytest.MonkeyPatch, negative: bool
) -> None:
    seen, encode = [], editing.family.encode
    name = "encode_negative" if negative else "encode"
    monkeypatch.setattr(
        editing.family, name, lambda p, i: seen.append((p[0], int(i[0][0][0, 0, 0]))) or encode(p, i)
    )
    prepared = ([], PROMPTS) if negative else (PROMPTS, [])
    editing.prepare(*prepared, PICTURES)
    assert seen == [("make it red", 1), ("make it red", 2), ("make it blue", 1)]
    encoded = editing.encode(PROMPTS, PICTURES, negative=negative)
    assert len(seen) == 3
    assert encoded.tensors["condition"][:, 0, 0, 0].tolist() == [1, 2, 1, 1]
    editing.cache = None
    alone = editing.encode(PROMPTS, PICTURES, negative=negative)
    for key, tensor in encoded.tensors.items():
        torch.testing.assert_close(tensor, alone.tensors[key], rtol=1e-5, atol=1e-6)


def test_the_cache_depends_on_the_settings_and_buffers_of_the_vae(
    editing: Any, pipeline_folder: Path, tmp_path: Path
) -> None:
    """Latents are scaled by both."""
    shutil.copytree(pipeline_folder, tmp_path / "copy")
    model = replace(editing.model, path=str(tmp_path / "copy"))
    assert load_policy(model, seed=0).cache.identity == editing.cache.identity
    file = tmp_path / "copy" / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"scaling_factor": 3.0}))
    assert load_policy(model, seed=0).cache.identity != editing.cache.identity
    vae = editing.pipeline.vae
    before = fingerprint([vae], [])
    vae.register_buffer("mean", torch.ones(2))
    assert fingerprint([vae], []) != before


def test_pictures_have_the_size_that_is_drawn(editing: Any) -> None:
    size = editing.model.resolution
    wide = editing.resized(f"{2 * size}x{size}")
    for policy, width in ((editing, size), (wide, 2 * size)):
        small = policy.encode(PROMPTS[:1], PICTURES[:1]).tensors["condition"]
        assert small.shape == (1, 3, size // 8, width // 8)
