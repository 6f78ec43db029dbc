"""The `hpsv3` reward against HPSv3 written out in float64."""

from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from marble_reward_hpsv3 import reward
from marble_reward_hpsv3.model import HPSv3Model, rename
from marble_reward_hpsv3.prompt import INSTRUCTION
from marble_reward_hpsv3.reward import HPSv3
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2VLConfig

from marble_cli.rewards.conformance import RewardConformance

from .original import Original
from .tiny_models import write_hpsv3

PIXELS = 4 * 28 * 28
PROMPTS = ["a red cup", "two blue kite and a cup " * 9, "", "a <|im_end|> and <|Reward|> <|image_pad|> cup"]
SIZES = [(56, 56), (64, 64), (96, 64), (40, 72), (20, 13), (30, 200)]  # height and width


def pictures(count: int, height: int, width: int) -> Tensor:
    """uint8 [count, 3, height, width]: noise, which shows every fault of a resize."""
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


@pytest.fixture(autouse=True, scope="module")
def _small_pictures() -> Iterator[None]:
    """Show the model 56 x 56 pixels, whose 16 patches are read 64 times as fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward, "PIXELS", PIXELS)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("hpsv3")
    write_hpsv3(place)
    return place


@pytest.fixture(scope="module")
def scored(folder: Path) -> HPSv3:
    return HPSv3(str(folder), str(folder), dtype=torch.float32)


@pytest.fixture(scope="module")
def half(folder: Path) -> HPSv3:
    return HPSv3(str(folder), str(folder))


@pytest.fixture(scope="module")
def original(folder: Path) -> Original:
    return Original(load_file(folder / "HPSv3.safetensors"), INSTRUCTION, PIXELS)


@pytest.mark.parametrize("index", range(len(SIZES)))
def test_score_equals_the_network_written_out(scored: HPSv3, original: Original, index: int) -> None:
    """Also shows that what the chat has after the score's token cannot change it."""
    images, prompt = pictures(1, *SIZES[index]), PROMPTS[index % len(PROMPTS)]
    found = scored(images, [prompt])
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(original.score(images[0], prompt), abs=1e-4)


def test_score_depends_on_the_prompt(scored: HPSv3) -> None:
    assert scored(pictures(1, 56, 56).expand(3, -1, -1, -1), PROMPTS[:3]).std() > 0.1


def test_scores_do_not_depend_on_the_batch(half: HPSv3) -> None:
    """Not by a bit, in half precision either, however long the other pictures' prompts are."""
    images = pictures(3, 48, 56)
    alone = torch.cat([half(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    assert torch.equal(half(images, PROMPTS[:3]), alone)


def test_the_head_keeps_its_precision(half: HPSv3, scored: HPSv3) -> None:
    assert half.model.model.dtype == torch.bfloat16
    for mine, other in zip(half.model.rm_head.parameters(), scored.model.rm_head.parameters(), strict=True):
        assert torch.equal(mine, other)
    images, prompt = pictures(1, 56, 56), PROMPTS[:1]
    torch.testing.assert_close(half(images, prompt), scored(images, prompt), atol=0.1, rtol=0.05)


def test_a_picture_on_which_the_model_overflows_has_failed(scored: HPSv3) -> None:
    """It is not one that the reward does not apply to."""
    batch, numbers = (pictures(2, 56, 56), PROMPTS[:2]), iter([torch.nan, 1.0])
    expected = scored(*batch).tolist()
    hook = scored.model.rm_head.register_forward_pre_hook(lambda _, tokens: (tokens[0] * next(numbers),))
    found = scored(*batch).tolist()
    hook.remove()
    assert found == [torch.inf, expected[1]]


def test_the_question_is_the_published_one() -> None:
    """White space counts; the digest is that of the published text."""
    digest = "eec53640fa8b722d1bc98497f3697eb7d0ad13afc6ced5936ee3bafc38b6e7f8"
    assert sha256(INSTRUCTION.encode()).hexdigest() == digest


def test_the_architecture_is_the_published_one() -> None:
    """The file has 16.6 GB: all in bfloat16 but the head, and with the language model's output."""
    vision = {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "mlp_ratio": 4}
    text = {
        "vocab_size": 151658,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    }
    with torch.device("meta"):
        model = HPSv3Model(Qwen2VLConfig(vision_config=vision, text_config=text))
    assert sum(p.numel() for p in model.parameters()) == HPSv3.loads["model"]["MizzenAI/HPSv3"]
    size = sum(p.numel() * 2 for p in model.model.parameters()) + 2 * 151658 * 3584
    size += sum(p.numel() * 4 for p in model.rm_head.parameters())
    assert size / 1e9 == pytest.approx(16.6, abs=0.05)


def test_weights_may_have_the_names_of_transformers_5(scored: HPSv3) -> None:
    assert rename(scored.model.state_dict()).keys() == scored.model.state_dict().keys()


def test_floating_pictures_are_refused(scored: HPSv3) -> None:
    with pytest.raises(TypeError, match=r"torch\.float32; expected torch\.uint8"):
        scored(pictures(1, 32, 32) / 255, ["a cup"])


def test_has_no_gradient(scored: HPSv3) -> None:
    assert not any(parameter.requires_grad for parameter in scored.model.parameters())


def test_a_missing_folder_is_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(OSError, match=r"there is no folder .*absent"):
        HPSv3(str(tmp_path / "absent"), str(folder))
    with pytest.raises(OSError, match=r"HPSv3 .* cannot be loaded: .*HPSv3\.safetensors"):
        HPSv3(str(tmp_path), str(folder))
    with pytest.raises(OSError, match=r"tokenizer .* cannot be loaded: .* Expected config\.json and"):
        HPSv3(str(folder), str(tmp_path))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("rm_head.5.weight", None, r"it lacks 1 of \d+ tensors, rm_head\.5\.weight among them"),
        (
            "model.embed_tokens.weight",
            torch.zeros(9, 48),
            r"embed_tokens\.weight has shape \[9, 48\], not \[20, 48\]",
        ),
    ],
)
def test_other_weights_are_refused(
    folder: Path, tmp_path: Path, name: str, change: Tensor | None, message: str
) -> None:
    """Without a refusal transformers would draw missing weights at random."""
    weights = load_file(folder / "HPSv3.safetensors") | {name: change}
    kept = {key: tensor for key, tensor in weights.items() if tensor is not None}
    save_file(kept, tmp_path / "HPSv3.safetensors")
    with pytest.raises(OSError, match=message):
        HPSv3(str(tmp_path), str(folder))


class TestHPSv3Conformance(RewardConformance):
    plugin = "hpsv3"
    options: ClassVar[Mapping[str, Any]] = {}

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _folder(cls, folder: Path) -> None:
        cls.options = {"model": str(folder), "base": str(folder)}
