"""The `clipscore` reward against CLIP computed step by step."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from marble_reward_clip.reward import ClipScore
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from marble_cli.rewards.conformance import RewardConformance

WORDS = ["<start>", "<end>", "a", "red", "blue", "cup", "kite", "and", "two"]
LENGTH = 8
CROP = 32
MEAN, STD = (0.48, 0.45, 0.40), (0.27, 0.26, 0.28)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random CLIP model, its tokenizer and its image processor."""
    place = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **small, "vocab_size": len(WORDS), "max_position_embeddings": LENGTH, "bos_token_id": 0, "eos_token_id": 1,
        "pad_token_id": 1,
    }  # fmt: skip
    vision = {**small, "image_size": CROP, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    model.save_pretrained(place)
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<end>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<start>", eos_token="<end>", pad_token="<end>", unk_token="<end>",
        model_max_length=LENGTH,
    ).save_pretrained(place)  # fmt: skip
    processor = {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": CROP},
        "resample": 3, "do_center_crop": True, "crop_size": {"height": CROP, "width": CROP}, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": MEAN, "image_std": STD, "do_convert_rgb": True,
    }  # fmt: skip
    (place / "preprocessor_config.json").write_text(json.dumps(processor))
    return place


@pytest.fixture(scope="module")
def reward(folder: Path) -> ClipScore:
    return ClipScore(str(folder))


def pictures(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def reference(folder: Path, images: Tensor, prompts: list[str]) -> np.ndarray:
    """Cosines [B] float64, from PIL's resize, word numbers looked up here and the two towers called apart."""
    model = CLIPModel.from_pretrained(folder).double().eval()
    scores = []
    for image, prompt in zip(images, prompts, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        scale = CROP / min(picture.size)
        width, height = (int(side * scale) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - CROP) // 2, (height - CROP) // 2
        pixels = np.asarray(picture.crop((left, top, left + CROP, top + CROP))) / 255
        pixels = (pixels - MEAN) / STD
        words = [WORDS.index(word) if word in WORDS else 1 for word in prompt.split()][: LENGTH - 2]
        with torch.no_grad():
            vision = model.vision_model(torch.from_numpy(pixels).permute(2, 0, 1)[None]).pooler_output
            text = model.text_model(torch.tensor([[0, *words, 1]])).pooler_output
            one, other = model.visual_projection(vision)[0].numpy(), model.text_projection(text)[0].numpy()
        scores.append(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    return np.array(scores)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (96, 64), (40, 72)])
def test_is_the_cosine_of_the_embeddings(folder: Path, reward: ClipScore, height: int, width: int) -> None:
    images, prompts = pictures(3, height, width), ["a red cup", "two blue kite and a cup", "a red cup"]
    assert reward(images, prompts).numpy() == pytest.approx(reference(folder, images, prompts), abs=2e-5)


def test_long_prompts_are_cut(folder: Path, reward: ClipScore) -> None:
    images, prompt = pictures(1, 32, 32), " ".join(["two red kite and a blue cup"] * 5)
    assert reward(images, [prompt]).numpy() == pytest.approx(reference(folder, images, [prompt]), abs=2e-5)
    assert torch.equal(reward(images, [prompt]), reward(images, [" ".join(prompt.split()[: LENGTH - 2])]))


def test_neighbours_do_not_matter(reward: ClipScore) -> None:
    images = pictures(6, 48, 48)
    prompts = ["a cup", "a red kite", "a cup", "two", "a blue cup and a red kite", ""]
    alone = torch.cat([reward(images[i : i + 1], prompts[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(reward(images, prompts), alone, rtol=1e-5, atol=1e-6)


def test_has_no_gradient(reward: ClipScore) -> None:
    assert not reward(pictures(1, 32, 32), ["a cup"]).requires_grad
    assert not any(parameter.requires_grad for parameter in reward.model.parameters())


def test_computes_in_the_given_type(folder: Path, reward: ClipScore) -> None:
    images, prompts = pictures(2, 32, 32), ["a cup", "a kite"]
    half = ClipScore(str(folder), dtype=torch.bfloat16)(images, prompts)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, reward(images, prompts), atol=0.02, rtol=0)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="there is no folder .*absent"):
        ClipScore(str(tmp_path / "absent"))


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot be loaded: .* Expected the files of a CLIPModel"):
        ClipScore(str(tmp_path))


def test_an_unreachable_hub_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)
    with pytest.raises(OSError, match="nobody/nothing.* cannot be loaded"):
        ClipScore("nobody/nothing")


def test_pickled_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(CLIPModel.from_pretrained(folder).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        ClipScore(str(tmp_path))


class TestClipScoreConformance(RewardConformance):
    plugin = "clipscore"
    options: ClassVar[Mapping[str, Any]] = {"model": "tiny"}
