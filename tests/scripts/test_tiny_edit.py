"""The embedded editing model: its instructions, pictures and weights, and its training at its smallest."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline
from PIL import Image

from scripts.tiny import edits, pretrain_edit
from scripts.tiny.edits import Edit, Picture, Shape

ASSETS = Path(str(files("marble_cli"))) / "assets" / "tiny_edit"
COUNTS = dict(pretrain_edit.Plan().prompts)


def shipped(split: str) -> list[dict[str, Any]]:
    lines = (ASSETS / "prompts" / f"{split}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("split", COUNTS)
def test_shipped_rows_and_pictures_equal_those_of_the_script(split: str) -> None:
    painted, rows = edits.edit_rows(0, split, *COUNTS[split])
    assert shipped(split) == rows
    assert len({(row["prompt"], row["image"]) for row in rows}) == len(rows)
    for number, pixels in enumerate(painted):
        with Image.open(ASSETS / "prompts" / edits.picture_name(split, number)) as picture:
            assert np.array_equal(np.asarray(picture), pixels)


def test_instructions_are_whole_words_to_both_text_encoders() -> None:
    from transformers import AutoTokenizer

    prompts = sorted({row["prompt"] for split in COUNTS for row in shipped(split)})
    for name, most, ends in (("tokenizer", 16, 2), ("tokenizer_2", pretrain_edit.TOKENS, 1)):
        ids = AutoTokenizer.from_pretrained(ASSETS / "pipeline" / name)(prompts).input_ids
        assert [len(row) for row in ids] == [len(prompt.split()) + ends for prompt in prompts]
        assert max(map(len, ids)) <= most


CIRCLE, SQUARE = Shape("circle", "red", 17, 17), Shape("square", "blue", 47, 47)


@pytest.mark.parametrize(
    ("edit", "words", "after"),
    [
        (Edit("color", 0, "green"), "make the circle green", [("circle", "green"), ("square", "blue")]),
        (
            Edit("shape", 1, "diamond"),
            "turn the square into a diamond",
            [("circle", "red"), ("diamond", "blue")],
        ),
        (Edit("remove", 0, ""), "remove the circle", [("square", "blue")]),
    ],
)
def test_an_edit_changes_its_shape_alone(edit: Edit, words: str, after: list[tuple[str, str]]) -> None:
    ground = edits.random_picture(np.random.default_rng(0)).ground
    picture = Picture(ground, (CIRCLE, SQUARE))
    edited = edit.apply(picture)
    assert edit.instruction(picture) == words
    assert [(shape.shape, shape.color) for shape in edited.shapes] == after

    metadata = edit.metadata(picture)
    names = [(entry["class"], entry["color"]) for entry in metadata["include"]]
    assert names == ([] if edit.kind == "remove" else [after[edit.index]])
    left, top, right, bottom = (round(side * 64) for side in metadata["region"])
    changed = (edits.paint_picture(picture) != edits.paint_picture(edited)).any(axis=2)
    assert changed[top:bottom, left:right].any()
    changed[top:bottom, left:right] = False
    assert not changed.any()


def test_targets_are_as_often_right_as_they_are_said_to_be() -> None:
    random = np.random.default_rng(1)
    right = unchanged = 0
    for _ in range(1000):
        picture = edits.random_picture(random)
        edit = edits.random_edit(random, picture)
        target = edits.random_target(random, picture, edit, edits.CARELESS)
        right, unchanged = right + (target == edit.apply(picture)), unchanged + (target == picture)
    # A wrong edit may be the right one.
    assert right / 1000 == pytest.approx(edits.CARELESS["right"], abs=0.05)
    assert unchanged / 1000 == pytest.approx(edits.CARELESS["unchanged"], abs=0.05)


def test_the_weights_are_small_and_never_pickled() -> None:
    assert sum(file.stat().st_size for file in ASSETS.rglob("*.safetensors")) <= 6_000_000
    assert sum(file.stat().st_size for file in ASSETS.rglob("*.png")) <= 60_000
    assert not [f for f in ASSETS.rglob("*") if f.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]


def test_pretrain_writes_the_pipeline_and_the_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = pretrain_edit.Plan(
        triples=(6, 6), steps=(1, 1), batch=4, prompts=(("train", (2, 3)), ("test", (1, 2)))
    )
    monkeypatch.setattr(pretrain_edit, "Plan", lambda: plan)
    pretrain_edit.main(["--output", str(tmp_path), "--scale", "1"])
    pipeline = FluxKontextPipeline.from_pretrained(tmp_path / "pipeline", dtype=torch.float32)
    assert pipeline.transformer.config.in_channels == 32
    assert len((tmp_path / "prompts" / "train.jsonl").read_text().splitlines()) == 6
    assert len(list((tmp_path / "prompts" / "pictures").glob("*.png"))) == 3


def test_packed_latents_are_those_of_the_pipeline() -> None:
    pipeline = FluxKontextPipeline.from_pretrained(ASSETS / "pipeline", dtype=torch.float32)
    pictures, _, _ = edits.painted_triples(3, 2, edits.BETTER)
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    pixels = pipeline.image_processor.preprocess(images.float() / 255)
    _, packed, places, condition_places = pipeline.prepare_latents(
        pixels, 2, pretrain_edit.CHANNELS, 64, 64, torch.float32, torch.device("cpu"), torch.Generator()
    )
    assert torch.allclose(pretrain_edit.packed_latents(pipeline.vae, images), packed, atol=1e-5)
    assert torch.equal(pretrain_edit.token_places(), torch.cat([places, condition_places]))
