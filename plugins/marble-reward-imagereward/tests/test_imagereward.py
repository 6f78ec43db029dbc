"""The `imagereward` reward and its conversion against ImageReward written out in float64."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from marble_reward_imagereward import convert, reward
from marble_reward_imagereward.model import ImageRewardModel, published_config
from marble_reward_imagereward.reward import ImageReward, preprocess
from safetensors.torch import load_file, save_file
from torch import Tensor

from marble_cli.rewards.conformance import RewardConformance

from .original import LENGTH, Original, cropped, original
from .tiny_models import imagereward_config, write_imagereward, write_tokenizer

SIZES = [(32, 32), (64, 64), (96, 64), (40, 72), (33, 31), (20, 24), (32, 39)]  # height and width
PROMPTS = ["a red cup", "two blue kite and a cup", "", "a purple cup"]


def pictures(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """uint8 [count, 3, height, width]: noise, which shows every fault of a resize."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def published() -> Original:
    return original(imagereward_config())


@pytest.fixture(scope="module")
def folder(published: Original, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convert a small checkpoint in the published layout."""
    place = tmp_path_factory.mktemp("imagereward")
    torch.save(published.state_dict(), place / "ImageReward.pt")
    write_tokenizer(place / "tokenizer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "published_config", imagereward_config)
        arguments = [
            str(place / "ImageReward.pt"),
            str(place / "new"),
            "--tokenizer",
            str(place / "tokenizer"),
        ]
        assert convert.main(arguments) == 0
    return place / "new"


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_scores_equal_the_originals(folder: Path, published: Original, height: int, width: int) -> None:
    images = pictures(len(PROMPTS), height, width)
    exact = published.double()
    expected = [exact.score(image, prompt) for image, prompt in zip(images, PROMPTS, strict=True)]
    found = ImageReward(str(folder))(images, PROMPTS)
    assert found.dtype == torch.float32
    assert found.numpy() == pytest.approx(expected, abs=1e-4)


def test_score_depends_on_picture_and_prompt(folder: Path) -> None:
    scored = ImageReward(str(folder))
    assert scored(pictures(5, 48, 48), ["a cup"] * 5).std() > 0.1
    assert scored(pictures(1, 48, 48).expand(4, -1, -1, -1), PROMPTS).std() > 0.1


@pytest.mark.parametrize(("height", "width"), [*SIZES, (512, 333), (333, 512), (225, 224), (229, 224)])
@pytest.mark.parametrize("side", [32, 224])
def test_preprocessing_equals_torchvisions(height: int, width: int, side: int) -> None:
    image = pictures(1, height, width)[0]
    expected = cropped(image, side).transpose(2, 0, 1)
    np.testing.assert_allclose(preprocess(image, side).numpy(), expected, rtol=0, atol=1e-6)


def test_the_head_keeps_its_precision(folder: Path) -> None:
    half, full = ImageReward(str(folder), dtype=torch.bfloat16), ImageReward(str(folder))
    assert half.model.vision_model.dtype == half.model.text_model.dtype == torch.bfloat16
    for mine, other in zip(half.model.head.parameters(), full.model.head.parameters(), strict=True):
        assert torch.equal(mine, other)
    images = pictures(4, 40, 40)
    found, expected = half(images, PROMPTS), full(images, PROMPTS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0.05)


def test_a_picture_on_which_the_model_overflows_has_failed(folder: Path) -> None:
    """It is not one that the reward does not apply to."""
    scored, images = ImageReward(str(folder)), pictures(4, 48, 56)
    expected, factors = scored(images, PROMPTS).tolist(), torch.tensor([[torch.nan], [1], [1], [1]])
    scored.model.head.register_forward_pre_hook(lambda _, tokens: (tokens[0] * factors,))
    assert scored(images, PROMPTS).tolist() == [torch.inf, *expected[1:]]


def test_scores_do_not_depend_on_the_batch(folder: Path) -> None:
    scored, images = ImageReward(str(folder)), pictures(4, 48, 56)
    alone = torch.cat([scored(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(scored(images, PROMPTS), alone, rtol=1e-5, atol=1e-5)


def test_scores_of_several_parts_keep_their_order(folder: Path) -> None:
    scored, images = ImageReward(str(folder)), pictures(2 * reward.CHUNK + 3, 33, 32)
    prompts = [" ".join(["red"] * i) for i in range(len(images))]
    picked = [0, reward.CHUNK - 1, reward.CHUNK, len(images) - 1]
    some = scored(images[picked], [prompts[i] for i in picked])
    torch.testing.assert_close(scored(images, prompts)[picked], some, rtol=1e-5, atol=1e-5)


def test_long_prompts_are_cut(folder: Path, published: Original) -> None:
    scored, images = ImageReward(str(folder)), pictures(1, 32, 32)
    long = " ".join(["two red kite and a blue cup"] * 9)
    kept = " ".join(long.split()[: LENGTH - 2])
    assert torch.equal(scored(images, [long]), scored(images, [kept]))
    assert not torch.equal(scored(images, [kept]), scored(images, [kept.rpartition(" ")[0]]))
    assert scored(images, [long]).item() == pytest.approx(published.double().score(images[0], long), abs=1e-4)


def test_floating_pictures_are_refused(folder: Path) -> None:
    with pytest.raises(TypeError, match=r"torch\.float32; expected torch\.uint8"):
        ImageReward(str(folder))(pictures(1, 32, 32) / 255, ["a cup"])


def test_has_no_gradient(folder: Path) -> None:
    scored = ImageReward(str(folder))
    assert not scored(pictures(1, 32, 32), ["a cup"]).requires_grad
    assert not any(parameter.requires_grad for parameter in scored.model.parameters())


def test_the_architecture_is_the_published_one() -> None:
    """Every tensor of the checkpoint has a place; the sum of them, in float32, is its published 1.79 GB."""
    with torch.device("meta"):
        published = Original(published_config()).state_dict()
        ours = ImageRewardModel(published_config()).state_dict()
    renamed = {name: tensor.shape for name, tensor in convert.rename(published).items()}
    unused = {f"blip.{name}_proj.{kind}" for name in ("vision", "text") for kind in ("weight", "bias")}
    assert renamed.keys() - ours.keys() == {*unused, "text_model.embeddings.position_ids"}
    assert {name: renamed[name] for name in ours} == {name: tensor.shape for name, tensor in ours.items()}
    vision, text = published_config().vision_config, published_config().text_config
    assert (vision.hidden_act, vision.layer_norm_eps, vision.num_attention_heads) == ("gelu", 1e-6, 16)
    assert (text.hidden_act, text.layer_norm_eps, text.num_attention_heads) == ("gelu", 1e-12, 12)
    assert sum(tensor.numel() * 4 for tensor in published.values()) / 1e9 == pytest.approx(1.79, abs=0.005)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="there is no folder .*absent.*convert ImageReward"):
        ImageReward(str(tmp_path / "absent"))


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot be loaded: .* Expected config\.json, model\.safetensors and"):
        ImageReward(str(tmp_path))


def test_a_folder_without_a_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    """Else every prompt would be unknown words, and the score with it."""
    for file in folder.iterdir():
        if file.name != "tokenizer.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "BertTokenizer", "model_max_length": 512}'
    )
    with pytest.raises(
        OSError, match=rf"cannot be loaded: the tokenizer of {tmp_path} has no vocabulary: .*vocab\.txt"
    ):
        ImageReward(str(tmp_path))


def test_incomplete_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    """Without a refusal transformers would draw missing weights at random."""
    for file in folder.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    del weights["head.7.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(OSError, match=r"its weights lack 1 parameters, head\.7\.weight"):
        ImageReward(str(tmp_path))


def test_pickled_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        ImageReward(str(tmp_path))


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert convert.main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out
    return err


def test_a_missing_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal([str(tmp_path / "absent.pt"), str(tmp_path / "new")], capsys)
    assert "absent.pt' cannot be loaded: [Errno 2] No such file" in said


def test_checkpoint_of_another_model_is_refused(
    tmp_path: Path,
    published: Original,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.save({"mlp.layers.0.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    assert "it lacks " in refusal([str(tmp_path / "other.pt"), str(tmp_path / "new")], capsys)
    torch.save(published.state_dict(), tmp_path / "small.pt")
    assert "it lacks " in refusal([str(tmp_path / "small.pt"), str(tmp_path / "new")], capsys)
    monkeypatch.setattr(convert, "published_config", imagereward_config)
    wrong = published.state_dict() | {"mlp.layers.0.weight": torch.zeros(2, 2)}
    torch.save(wrong, tmp_path / "wrong.pt")
    said = refusal([str(tmp_path / "wrong.pt"), str(tmp_path / "new")], capsys)
    assert "head.0.weight has shape [2, 2], not [1024, " in said
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_that_would_run_code_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(np.random.default_rng(0), tmp_path / "object.pt")
    said = refusal([str(tmp_path / "object.pt"), str(tmp_path / "new")], capsys)
    assert "cannot be loaded: it is no torch file, or holds more than tensors." in said


def test_nonempty_folder_is_refused_and_unchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    said = refusal([str(tmp_path / "ImageReward.pt"), str(tmp_path / "full")], capsys)
    assert "is not empty. Name a new folder." in said


class TestImageRewardConformance(RewardConformance):
    plugin = "imagereward"
    options: ClassVar[Mapping[str, Any]] = {}

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _folder(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        place = tmp_path_factory.mktemp("conformance")
        write_imagereward(place)
        cls.options = {"model": str(place)}
