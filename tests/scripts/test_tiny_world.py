"""The embedded model's world: what its prompts say is what its pictures show, and the shipped prompts are its own."""

import json
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import tiny_world as world

ASSETS = Path(str(files("marble_cli"))) / "assets" / "tiny"


def shipped(source: str, split: str) -> list[dict[str, object]]:
    lines = (ASSETS / "prompts" / source / f"{split}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("source", world.SOURCES)
def test_the_shipped_prompts_are_what_the_script_writes(source: str) -> None:
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


def test_metadata_says_what_the_prompt_says() -> None:
    for row in shipped("compositional", "test"):
        for wanted in row["include"]:  # type: ignore[union-attr]
            assert f"{wanted['color']} {wanted['class']}" in str(row["prompt"])
    for row in shipped("text", "test"):
        assert f'"{row["text"]}"' in str(row["prompt"])


def test_pictures_follow_the_seed() -> None:
    noise = dict.fromkeys(world.SOURCES, 0.5)
    one, other = world.draw_pairs(3, 9, noise), world.draw_pairs(3, 9, noise)
    assert np.array_equal(one[0], other[0])
    assert one[1] == other[1]
    assert one[0].shape == (9, 64, 64, 3)
    assert not np.array_equal(one[0], world.draw_pairs(4, 9, noise)[0])


def test_the_weights_are_small_and_never_pickled() -> None:
    weights = list(ASSETS.rglob("*.safetensors"))
    assert sum(file.stat().st_size for file in weights) <= 12_000_000
    assert not [f for f in ASSETS.rglob("*") if f.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]
