"""What all rewards of the distribution have in common: texts, batches, types and errors."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from marble_reward_clip import clip
from marble_reward_clip.aesthetic import Aesthetic
from marble_reward_clip.clip import Clip
from marble_reward_clip.clipscore import ClipScore
from marble_reward_clip.convert import vit_h_14
from marble_reward_clip.hpsv2 import HpsV2
from marble_reward_clip.pickscore import PickScore
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from .reference import LENGTH, pictures, text_embedding

Build = type[ClipScore] | type[PickScore] | type[HpsV2]
WITH_PROMPTS = pytest.mark.parametrize("build", [ClipScore, PickScore, HpsV2])


@pytest.fixture(params=[ClipScore, PickScore, HpsV2, Aesthetic])
def score(
    request: pytest.FixtureRequest, folder: Path, predictor: Path
) -> Callable[[Tensor, Sequence[str]], Tensor]:
    """Any of the rewards, called with images and prompts."""
    if request.param is Aesthetic:
        reward = Aesthetic(str(folder), str(predictor))
        return lambda images, prompts: reward(images)
    return request.param(str(folder))


PROMPTS = ["a cup", "a red kite", "a cup", "two", "a blue cup and a red kite", ""]


def test_scores_do_not_depend_on_the_batch(score: Callable[[Tensor, Sequence[str]], Tensor]) -> None:
    images = pictures(6, 48, 56)
    alone = torch.cat([score(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(score(images, PROMPTS), alone, rtol=1e-5, atol=1e-5)


def test_large_batch_is_embedded_in_parts(
    score: Callable[[Tensor, Sequence[str]], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pictures(6, 48, 56)
    whole = score(images, PROMPTS)
    monkeypatch.setattr(clip, "CHUNK", 2)
    embed, seen = Clip._image, []
    monkeypatch.setattr(Clip, "_image", lambda self, pixels: seen.append(len(pixels)) or embed(self, pixels))
    torch.testing.assert_close(score(images, PROMPTS), whole, rtol=1e-5, atol=1e-5)
    assert seen == [2, 2, 2]


def test_scores_of_several_parts_keep_their_order(score: Callable[[Tensor, Sequence[str]], Tensor]) -> None:
    images = pictures(2 * clip.CHUNK + 3, 33, 32)
    prompts = [" ".join(["red"] * (i % 75)) for i in range(len(images))]
    scores = score(images, prompts)
    picked = [0, clip.CHUNK - 1, clip.CHUNK, len(images) - 1]
    some = score(images[picked], [prompts[i] for i in picked])
    torch.testing.assert_close(scores[picked], some, rtol=1e-5, atol=1e-5)


def test_floating_pictures_are_refused(score: Callable[[Tensor, Sequence[str]], Tensor]) -> None:
    with pytest.raises(TypeError, match=r"torch\.float32; expected torch\.uint8"):
        score(pictures(1, 32, 32) / 255, ["a cup"])


@pytest.mark.parametrize("build", [ClipScore, PickScore, HpsV2, Aesthetic])
def test_a_picture_on_which_the_model_overflows_has_failed(
    folder: Path, predictor: Path, build: type[Any]
) -> None:
    """It is not one that the reward does not apply to."""
    aesthetic = build is Aesthetic
    reward = build(str(folder), str(predictor)) if aesthetic else build(str(folder))
    batch = (pictures(3, 48, 56),) if aesthetic else (pictures(3, 48, 56), PROMPTS[:3])
    expected = reward(*batch).tolist()

    def overflow(_: Any, __: Any, embeddings: Tensor) -> None:
        embeddings[0, 0] = torch.inf

    reward.clip.model.visual_projection.register_forward_hook(overflow)
    assert reward(*batch).tolist() == [torch.inf, *expected[1:]]


@WITH_PROMPTS
def test_long_prompts_are_cut(folder: Path, build: Build) -> None:
    images, long = pictures(1, 32, 32), " ".join(["two red kite and a blue cup"] * 15)
    reward = build(str(folder))
    kept = " ".join(long.split()[: LENGTH - 2])
    assert torch.equal(reward(images, [long]), reward(images, [kept]))
    assert not torch.equal(reward(images, [long]), reward(images, [kept.rpartition(" ")[0]]))
    assert reward.clip.texts([long])[0].numpy() == pytest.approx(text_embedding(folder, long), abs=2e-6)


@WITH_PROMPTS
def test_empty_prompt_is_scored(folder: Path, build: Build) -> None:
    assert build(str(folder)).clip.texts([""])[0].numpy() == pytest.approx(
        text_embedding(folder, ""), abs=2e-6
    )


@WITH_PROMPTS
def test_models_have_the_given_precision(folder: Path, build: Build) -> None:
    images, prompts = pictures(2, 32, 32), ["a cup", "a kite"]
    full, half = build(str(folder)), build(str(folder), dtype=torch.bfloat16)
    assert half.clip.model.dtype == torch.bfloat16
    tolerance = 0.02 * full.range[1]
    torch.testing.assert_close(half(images, prompts), full(images, prompts), atol=tolerance, rtol=0)


def test_has_no_gradient(folder: Path) -> None:
    reward = ClipScore(str(folder))
    assert not reward(pictures(1, 32, 32), ["a cup"]).requires_grad
    assert not any(parameter.requires_grad for parameter in reward.clip.model.parameters())


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="there is no folder .*absent"):
        ClipScore(str(tmp_path / "absent"))
    with pytest.raises(OSError, match="there is no folder .*absent.*convert hpsv2"):
        HpsV2(str(tmp_path / "absent"))


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot be loaded: .* Expected the files of a CLIPModel"):
        PickScore(str(tmp_path))


def test_a_folder_without_an_image_processor_is_named(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if file.name != "preprocessor_config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(OSError, match=r"cannot be loaded: .* Expected a preprocessor_config\.json"):
        PickScore(str(tmp_path))


@pytest.mark.parametrize("reward", [ClipScore, PickScore, HpsV2])
def test_a_folder_without_a_vocabulary_is_refused(folder: Path, tmp_path: Path, reward: type) -> None:
    """Else every prompt would be unknown words, and the score with it."""
    for file in folder.iterdir():
        if file.name != "tokenizer.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace("PreTrainedTokenizerFast", "CLIPTokenizer"))
    settings.write_text(settings.read_text().replace("TokenizersBackend", "CLIPTokenizer"))
    with pytest.raises(
        OSError, match=rf"cannot be loaded: the tokenizer of {tmp_path} has no vocabulary: .*tokenizer\.json"
    ):
        reward(str(tmp_path))


def test_an_unreachable_hub_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)
    with pytest.raises(OSError, match="nobody/nothing.* cannot be loaded"):
        ClipScore("nobody/nothing")


def test_pickled_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(CLIPModel.from_pretrained(folder).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        ClipScore(str(tmp_path))


def test_incomplete_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    """Without a refusal transformers would draw missing weights at random."""
    for file in folder.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(OSError, match=r"its weights lack 1 parameters, text_projection\.weight"):
        HpsV2(str(tmp_path))


TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
SIXTEEN = {"num_attention_heads": 16, "patch_size": 14}
VISION = {**SIXTEEN, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
LARGE = {"text_config": TEXT, "projection_dim": 768}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("openai/clip-vit-base-patch16", {"vision_config": {"patch_size": 16}}),
        ("openai/clip-vit-base-patch32", {}),
        ("openai/clip-vit-large-patch14", {"vision_config": VISION, **LARGE}),
        ("openai/clip-vit-large-patch14-336", {"vision_config": {**VISION, "image_size": 336}, **LARGE}),
        ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", vit_h_14().to_dict()),
        ("yuvalkirstain/PickScore_v1", vit_h_14().to_dict()),
    ],
)
def test_published_models_have_as_many_parameters_as_their_architecture(
    name: str, settings: dict[str, Any]
) -> None:
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig.from_dict(settings))
    assert sum(parameter.numel() for parameter in model.parameters()) == clip.PUBLISHED[name]
