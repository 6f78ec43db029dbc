"""The embedded model: its prompts, its pictures, its weights, and its training at the smallest size."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from scripts.tiny import painter, pretrain, world

ASSETS = Path(str(files("marble_cli"))) / "assets" / "tiny"


def shipped(source: str, split: str) -> list[dict[str, object]]:
    lines = (ASSETS / "prompts" / source / f"{split}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("source", world.SOURCES)
def test_shipped_prompts_equal_those_of_the_script(source: str) -> None:
    train, test = world.prompt_rows(0, source, 4_000, 400)
    assert shipped(source, "train") == train
    assert shipped(source, "test") == test


def test_prompts_are_distinct_and_the_held_out_ones_unseen() -> None:
    seen = [str(row["prompt"]) for source in world.SOURCES for row in shipped(source, "train")]
    unseen = [str(row["prompt"]) for source in world.SOURCES for row in shipped(source, "test")]
    assert len(set(seen + unseen)) == len(seen) + len(unseen) == 13_200


def test_every_prompt_fits_the_text_encoder() -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(ASSETS / "pipeline" / "tokenizer")
    prompts = [str(row["prompt"]) for source in world.SOURCES for row in shipped(source, "test")]
    assert max(len(ids) for ids in tokenizer(prompts).input_ids) <= 16


def test_metadata_agrees_with_the_prompt() -> None:
    for row in shipped("compositional", "test"):
        for wanted in row["include"]:  # type: ignore[union-attr]
            assert f"{wanted['color']} {wanted['class']}" in str(row["prompt"])
    for row in shipped("text", "test"):
        assert f'"{row["text"]}"' in str(row["prompt"])


def test_pictures_follow_the_seed() -> None:
    noise = dict.fromkeys(world.SOURCES, 0.5)
    one, other = painter.painted_pairs(3, 9, noise), painter.painted_pairs(3, 9, noise)
    assert np.array_equal(one[0], other[0])
    assert one[1] == other[1]
    assert one[0].shape == (9, 64, 64, 3)
    assert not np.array_equal(one[0], painter.painted_pairs(4, 9, noise)[0])


def test_the_weights_are_small_and_never_pickled() -> None:
    weights = list(ASSETS.rglob("*.safetensors"))
    assert sum(file.stat().st_size for file in weights) <= 12_000_000
    assert not [f for f in ASSETS.rglob("*") if f.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]


def test_pretrain_writes_the_pipeline_the_clip_and_the_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = pretrain.Plan(
        images=12,
        clip_steps=1,
        clip_batch=4,
        vae_crop_steps=1,
        vae_steps=1,
        vae_batch=2,
        flow_steps=1,
        flow_batch=4,
        prompts_train=3,
        prompts_test=2,
    )
    monkeypatch.setattr(pretrain, "Plan", lambda: plan)
    pretrain.main(["--output", str(tmp_path), "--scale", "1"])
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        tmp_path / "pipeline", text_encoder_3=None, tokenizer_3=None, dtype=torch.float32
    )
    assert pipeline.transformer.config.sample_size == 8
    assert (tmp_path / "clip" / "model.safetensors").is_file()
    assert len((tmp_path / "prompts" / "text" / "train.jsonl").read_text().splitlines()) == 3


def test_a_scaled_plan_keeps_its_batches() -> None:
    small = pretrain.Plan().scaled(0.01)
    assert (small.images, small.clip_steps, small.flow_steps, small.vae_batch) == (360, 4, 25, 48)
