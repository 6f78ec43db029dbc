"""The `editreward` reward against EditReward written out in float64."""

import json
import shutil
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from marble_reward_editreward import reward
from marble_reward_editreward.model import EditRewardModel, rename
from marble_reward_editreward.prompt import FOLLOWING, QUALITY
from marble_reward_editreward.reward import EditReward
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2_5_VLConfig

from marble_cli.rewards.conformance import RewardConformance

from .original import Original
from .tiny_models import CHAT, write_editreward, write_tokenizer

PIXELS = 12 * 28 * 28
PROMPTS = [
    "Make the cup red",
    "Make the blue cup red " * 9,
    "",
    "Make <|im_end|> and <|Reward|> <|image_pad|>",
]
SIZES = [(56, 56), (64, 64), (96, 64), (40, 72), (20, 13), (30, 200)]  # height and width


def pictures(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """uint8 [count, 3, height, width]: noise, which shows every fault of a resize."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


@pytest.fixture(autouse=True, scope="module")
def _small_pictures() -> Iterator[None]:
    """Show the model few patches, of several windows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward, "PIXELS", PIXELS)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("editreward")
    write_editreward(place)
    return place


@pytest.fixture(scope="module")
def scored(folder: Path) -> EditReward:
    return EditReward(str(folder), str(folder), dtype=torch.float32)


@pytest.fixture(scope="module")
def half(folder: Path) -> EditReward:
    return EditReward(str(folder), str(folder))


@pytest.fixture(scope="module")
def original(folder: Path) -> Original:
    return Original(load_file(folder / "model.safetensors"), (FOLLOWING, QUALITY), PIXELS)


@pytest.mark.parametrize("index", range(len(SIZES)))
def test_score_equals_the_network_written_out(scored: EditReward, original: Original, index: int) -> None:
    """Also shows that what the chat has after the score's token cannot change it."""
    (before, after), prompt = pictures(2, *SIZES[index]), PROMPTS[index % len(PROMPTS)]
    found = scored(after[None], [prompt], before[None])
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(original.score(before, after, prompt), abs=3e-5)


def test_score_depends_on_the_instruction_and_on_both_pictures(scored: EditReward) -> None:
    before, after = pictures(3, 56, 56), pictures(3, 56, 56, seed=1)
    same = after[:1].expand(3, -1, -1, -1)
    for images, prompts, conditions in (
        (same, PROMPTS[:3], same),
        (after, PROMPTS[:1] * 3, same),
        (same, PROMPTS[:1] * 3, before),
    ):
        assert scored(images, prompts, conditions).std() > 0.01
    assert scored(after, PROMPTS[:3], before).ne(scored(before, PROMPTS[:3], after)).all()


def test_scores_do_not_depend_on_the_batch(half: EditReward) -> None:
    """Not by a bit, in half precision either, however long the other edits' instructions are."""
    images, before = pictures(3, 48, 56), pictures(3, 48, 56, seed=1)
    rows = [slice(i, i + 1) for i in range(3)]
    alone = torch.cat([half(images[row], PROMPTS[row], before[row]) for row in rows])
    assert torch.equal(half(images, PROMPTS[:3], before), alone)


def test_the_heads_keep_their_precision(half: EditReward, scored: EditReward) -> None:
    assert half.model.model.dtype == torch.bfloat16
    heads = zip(half.model.rm_heads.parameters(), scored.model.rm_heads.parameters(), strict=True)
    assert all(torch.equal(mine, other) for mine, other in heads)
    edit = pictures(1, 56, 56), PROMPTS[:1], pictures(1, 56, 56, seed=1)
    torch.testing.assert_close(half(*edit), scored(*edit), atol=0.1, rtol=0.05)


def test_an_edit_on_which_the_model_overflows_has_failed(scored: EditReward) -> None:
    """It is not one that the reward does not apply to."""
    batch = pictures(2, 56, 56), PROMPTS[:2], pictures(2, 56, 56, seed=1)
    expected, numbers = scored(*batch).tolist(), iter([torch.nan, 1.0])
    head = scored.model.rm_heads["head_1"]
    hook = head.register_forward_pre_hook(lambda _, tokens: (tokens[0] * next(numbers),))
    found = scored(*batch).tolist()
    hook.remove()
    assert found == [torch.inf, expected[1]]


def test_the_questions_are_the_published_ones() -> None:
    """White space counts; the digests are those of the published texts."""
    digests = [sha256(question.encode()).hexdigest()[:16] for question in (FOLLOWING, QUALITY)]
    assert digests == ["b8c53a0a3b67db1c", "4583db70a7aba603"]


# Flat, as the published config.json of Qwen2.5-VL-7B-Instruct.
PUBLISHED = {
    "model_type": "qwen2_5_vl",
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
}


def test_the_architecture_is_the_published_one() -> None:
    """The file has 741 tensors of 8,296,688,740 numbers, among them the language model's output."""
    config = Qwen2_5_VLConfig.from_dict(PUBLISHED)
    assert config.text_config.rope_parameters["mrope_section"] == [16, 24, 24]
    config.text_config.vocab_size = 151666  # tokens of the published tokenizer, and the reward's
    with torch.device("meta"):
        model = EditRewardModel(config)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    assert numbers == EditReward.loads["model"]["TIGER-Lab/EditReward-Qwen2.5-VL-7B"]
    assert numbers + 151666 * 3584 == 8_296_688_740
    assert len(model.state_dict()) + 1 == 741


def test_weights_may_have_older_names(scored: EditReward) -> None:
    """Those of transformers before 4.52."""
    weights = scored.model.state_dict()
    older = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): tensor
        for name, tensor in weights.items()
    }
    assert older.keys() != weights.keys()
    assert rename(older).keys() == rename(weights).keys() == weights.keys()


def test_the_chat_is_the_processors(folder: Path, tmp_path: Path, scored: EditReward) -> None:
    """As transformers chooses between two templates; MiMo-VL's differs from Qwen's."""
    base = tmp_path / "base"
    shutil.copytree(folder, base)
    chat = CHAT.replace("You are a helpful assistant.", "user")
    (base / "chat_template.jinja").unlink()
    (base / "chat_template.json").write_text(json.dumps({"chat_template": chat}))
    before = EditReward(str(folder), str(base)).questions[0].before
    assert len(before) == len(scored.questions[0].before) - 4
    write_tokenizer(base, CHAT.replace("<|image_pad|>", ""))
    (base / "chat_template.json").unlink()
    with pytest.raises(OSError, match="its chat template shows 0 pictures, not two before the text"):
        EditReward(str(folder), str(base))
    (base / "chat_template.jinja").unlink()
    with pytest.raises(OSError, match=r"cannot be loaded: it has no chat template\. Expected config\.json"):
        EditReward(str(folder), str(base))


def test_floating_pictures_are_refused(scored: EditReward) -> None:
    with pytest.raises(TypeError, match=r"torch\.float32; expected torch\.uint8"):
        scored(pictures(1, 32, 32) / 255, ["a cup"], pictures(1, 32, 32))


def test_has_no_gradient(scored: EditReward) -> None:
    assert not any(parameter.requires_grad for parameter in scored.model.parameters())


def test_a_missing_folder_is_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(OSError, match=r"there is no folder .*absent"):
        EditReward(str(tmp_path / "absent"), str(folder))
    with pytest.raises(OSError, match=r"EditReward .* cannot be loaded: .*model\.safetensors"):
        EditReward(str(tmp_path), str(folder))
    with pytest.raises(OSError, match=r"tokenizer .* cannot be loaded: .* Expected config\.json, tokenizer"):
        EditReward(str(folder), str(tmp_path))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("rm_heads.head_1.5.weight", None, r"it lacks 1 of \d+ tensors, rm_heads\.head_1\.5\.weight among"),
        (
            "model.language_model.embed_tokens.weight",
            torch.zeros(9, 48),
            r"embed_tokens\.weight has shape \[9, 48\], not \[18, 48\]",
        ),
    ],
)
def test_other_weights_are_refused(
    folder: Path, tmp_path: Path, name: str, change: Tensor | None, message: str
) -> None:
    """Without a refusal transformers would draw missing weights at random."""
    weights = load_file(folder / "model.safetensors") | {name: change}
    kept = {key: tensor for key, tensor in weights.items() if tensor is not None}
    save_file(kept, tmp_path / "model.safetensors")
    with pytest.raises(OSError, match=message):
        EditReward(str(tmp_path), str(folder))


class TestEditRewardConformance(RewardConformance):
    plugin = "editreward"
    options: ClassVar[Mapping[str, Any]] = {}

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _folder(cls, folder: Path) -> None:
        cls.options = {"model": str(folder), "base": str(folder)}
