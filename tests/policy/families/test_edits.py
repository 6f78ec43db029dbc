"""What only models have that start from a picture: sizes of pictures, and what a picture changes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from marble_cli.config.resolution import read_resolution
from marble_cli.config.schema import ModelConfig
from marble_cli.data.condition_checks import check_conditions
from marble_cli.data.conditions import Condition
from marble_cli.data.prompts import Prompt
from marble_cli.errors import DataError, RequestError
from marble_cli.policy.families.flux2 import Flux2Klein
from marble_cli.policy.families.qwen_image_edit import QwenImageEdit, QwenImageEditPlus
from marble_cli.policy.load import load_policy
from marble_cli.policy.size import model_size
from marble_cli.policy.source import count_pictures
from tests.policy.families.cases import PROMPTS, Case, assert_same_images, load_plain, plain_run
from tests.policy.families.pipelines import EDITS, SEVERAL


@pytest.mark.parametrize("case", EDITS, indirect=True)
@torch.no_grad()
def test_another_picture_gives_another_velocity(case: Case) -> None:
    """Whichever of its pictures it is, with all else equal, and for that sample alone."""
    policy, encoded = case.policy, case.encode(case.policy)
    names = [name for name in encoded.tensors if name.startswith("condition")]
    assert len(names) == case.tiny.pictures
    one = policy.velocity(case.start(), case.times, encoded, None)
    for name in names:
        other = {**encoded.tensors, name: encoded.tensors[name][[2, 1, 0]]}
        two = policy.velocity(case.start(), case.times, replace(encoded, tensors=other), None)
        distance = (one - two).flatten(1).norm(dim=1) / one.flatten(1).norm(dim=1)
        assert distance[1] == 0
        assert min(distance[0], distance[2]) > 1e-4


@pytest.mark.parametrize("case", SEVERAL, indirect=True)
@torch.no_grad()
def test_models_of_several_pictures_take_one(case: Case) -> None:
    """Which then has the size of the image, as where a model takes no more."""
    one = replace(case, tiny=replace(case.tiny, pictures=1))
    embeddings = one.encode_anew(one.policy)
    assert one.policy.layout(one.pictures("a")) != case.policy.layout(case.pictures("a"))
    run, rows = plain_run(one, one.plain), torch.arange(len(PROMPTS))
    slopes = run.latents.diff(dim=0) / run.times.diff()[:, None, None, None, None]
    got = one.policy.velocity(run.latents[rows, rows], run.times[rows], embeddings, None)
    torch.testing.assert_close(got, slopes[rows, rows], rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize(
    ("resolution", "encoded", "seen"),
    [
        ("512x512", (1024, 1024), (384, 384)),
        ("1024x1024", (1024, 1024), (384, 384)),
        ("768x512", (1248, 832), (480, 320)),
    ],
)
def test_qwen_sees_pictures_at_its_pipelines_areas(
    monkeypatch: pytest.MonkeyPatch,
    tiny_folder: Callable[[str], Path],
    resolution: str,
    encoded: tuple[int, int],
    seen: tuple[int, int],
) -> None:
    """The pipelines' 1024 x 1024 and 384 x 384 pixels, to multiples of 32; the battery has fewer."""
    monkeypatch.setattr(QwenImageEdit, "latent_area", 1024 * 1024)
    monkeypatch.setattr(QwenImageEdit, "seen_area", 1024 * 1024)
    monkeypatch.setattr(QwenImageEditPlus, "seen_area", 384 * 384)
    pipeline = load_plain(tiny_folder("qwen_image_edit"))
    for family, expected in ((QwenImageEdit, encoded), (QwenImageEditPlus, seen)):
        made, size = family(pipeline, ModelConfig(resolution=64)), read_resolution(resolution)
        picture = size.width, size.height
        assert (made.encoded_size(*picture), made.seen_size(*picture)) == (encoded, expected)
        assert made.condition_shape(*picture) == (4, encoded[1] // 4, encoded[0] // 4)


@pytest.mark.parametrize(
    ("resolution", "encoded"),
    [
        ("512x768", (512, 768)),
        ("1024x1024", (1024, 1024)),
        ("1536x1024", (1248, 832)),
        ("1600x1200", (1176, 880)),
    ],
)
def test_flux2_takes_at_most_a_million_pixels_of_a_picture(
    tiny_folder: Callable[[str], Path], resolution: str, encoded: tuple[int, int]
) -> None:
    """By the pipeline's own rule; the tiny model's tokens span 8 pixels."""
    pipeline, size = load_plain(tiny_folder("flux2_klein")), read_resolution(resolution)
    family = Flux2Klein(pipeline, ModelConfig(resolution=64))
    assert family.encoded_size(size.width, size.height) == encoded
    picture = Image.new("RGB", (size.width, size.height))
    if size.pixels > 1024 * 1024:
        picture = pipeline.image_processor._resize_to_target_area(picture)
    assert encoded == tuple(side // 8 * 8 for side in picture.size)


@pytest.mark.parametrize("case", ["qwen_image_edit"], indirect=True)
def test_long_instructions_are_cut_and_the_picture_is_not(case: Case) -> None:
    policy: Any = load_policy(replace(case.model, max_sequence_length=8), 0)
    length = policy.family.picture_tokens(48, 32) + 8
    whole, cut = case.encode(case.policy), case.encode(policy)
    assert cut.lengths == (length,) * len(PROMPTS)
    assert torch.equal(cut.tensors["tokens"], whole.tensors["tokens"][:, :length])


@pytest.mark.parametrize("case", ["qwen_image_edit"], indirect=True)
def test_folder_without_its_processor_is_refused(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for part in Path(case.model.path).iterdir():
        if part.name != "processor":
            (folder / part.name).symlink_to(part)
    with pytest.raises(RequestError, match=r"processor is missing, which holds a processor \(Qwen2VLProc"):
        load_policy(replace(case.model, path=str(folder)), 0)


@pytest.mark.parametrize("case", ["flux_kontext", "flux2", "flux2_klein"], indirect=True)
@torch.no_grad()
def test_models_of_flux_without_pictures_draw_from_the_text_alone(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Case, "edits", False)
    assert_same_images(case.images(case.policy, None), plain_run(case, case.plain).images)


def test_rows_with_and_without_pictures_do_not_mix() -> None:
    """Where a model takes both; the others are told that one is missing, or one too many."""
    rows = [
        Prompt("a cup", where="a.jsonl, line 1"),
        Prompt("a boat", source="signs", where="a.jsonl, line 2"),
    ]
    picture = Condition("a.jsonl, line 1", Path("a.png"))
    with pytest.raises(
        DataError, match=r"none in data\.sources\.signs: a\.jsonl, line 2\. Expected one in all"
    ):
        check_conditions([replace(rows[0], images=(picture,)), rows[1]], "m", 0, None)
    check_conditions(rows, "m", 0, None)


@pytest.mark.parametrize("case", EDITS, indirect=True)
def test_pictures_are_optional_in_flux2(case: Case) -> None:
    least = 0 if case.tiny.choice in ("flux2", "flux2_klein") else 1
    most = None if case.name in SEVERAL else 1
    assert count_pictures(case.model, fetch=False) == (least, most)


@pytest.mark.parametrize("case", ["flux2_klein"], indirect=True)
def test_a_plan_counts_every_picture(case: Case) -> None:
    """Each has as many tokens as the result."""
    bare, one, two = (model_size(case.model, pictures=count) for count in (0, 1, 2))
    assert bare is not None
    assert one is not None
    assert two is not None
    assert bare.tokens == one.tokens == two.tokens
    assert one.cost.forward > 1.4 * bare.cost.forward
    assert two.cost.forward - one.cost.forward > one.cost.forward - bare.cost.forward
    assert two.most_kept - one.most_kept == one.most_kept - bare.most_kept > 0.4 * bare.most_kept
