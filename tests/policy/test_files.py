"""Folders of pipelines that lack a vocabulary or weights are refused by name, by runs and dry runs alike."""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from marble_cli.config.compose import compose
from marble_cli.config.enums import Precision
from marble_cli.config.schema import ModelConfig
from marble_cli.errors import RequestError
from marble_cli.policy.files import check_files
from marble_cli.policy.load import load_policy
from marble_cli.policy.source import EMBEDDED
from marble_cli.tokenizers import check_tokenizer
from tests.policy.families.pipelines import TINY, configured

FAMILIES = ["sd3", "flux_schnell", "qwen_image", "sana", "z_image"]
Edit = Callable[[Path], None]


def model_of(folder: Path, name: str) -> ModelConfig:
    tiny = TINY[name]
    return replace(
        configured(tiny.choice),
        path=str(folder),
        resolution=tiny.resolution,
        max_sequence_length=tiny.max_sequence_length,
        precision=Precision.fp32,
        device="cpu",
        embedding_cache=None,
        guidance=None,
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_whole_pipeline_passes(tiny_folder: Callable[[str], Path], name: str) -> None:
    check_files(model_of(tiny_folder(name), name))


def test_embedded_pipeline_passes() -> None:
    check_files(compose(["rewards=colorfulness"]).model)


def without_vocabulary(folder: Path) -> None:
    for file in ("tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model"):
        (folder / file).unlink(missing_ok=True)


def with_few_words(folder: Path) -> None:
    """Keep few words of a byte-pair vocabulary, without its merges, or of a sentencepiece vocabulary."""
    file = folder / "tokenizer.json"
    tree = json.loads(file.read_text())
    vocabulary = tree["model"]["vocab"]
    kept = list(vocabulary)[:20] if isinstance(vocabulary, list) else dict(list(vocabulary.items())[:20])
    tree["model"] |= {"vocab": kept, **({"merges": []} if "merges" in tree["model"] else {})}
    file.write_text(json.dumps(tree))


def without_settings(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()


def cut_short(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:100])


def gone(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize("edit", [without_vocabulary, with_few_words, without_settings, cut_short, gone])
@pytest.mark.parametrize("name", FAMILIES)
def test_tokenizer_without_words_is_refused(
    tiny_folder: Callable[[str], Path], tmp_path: Path, name: str, edit: Edit
) -> None:
    folder = tmp_path / "[red] pipeline"
    shutil.copytree(tiny_folder(name), folder)
    tokenizer = sorted(folder.glob("tokenizer*"))[-1]
    edit(tokenizer)
    model = model_of(folder, name)
    with pytest.raises(RequestError) as told:
        check_files(model)
    assert str(tokenizer) in str(told.value)
    assert "\n" not in str(told.value)
    with pytest.raises(RequestError) as refused:
        load_policy(model, 0)
    assert str(refused.value) == str(told.value)


@pytest.mark.parametrize(
    ("key", "said"), [(None, "has no model_max_length"), (10**30, "positions for"), (500, "positions for")]
)
def test_clip_tokenizer_without_a_usable_length_is_refused(
    tiny_folder: Callable[[str], Path], tmp_path: Path, key: int | None, said: str
) -> None:
    shutil.copytree(tiny_folder("flux_schnell"), tmp_path / "p")
    file = tmp_path / "p" / "tokenizer" / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(
        json.dumps(
            {**settings, "model_max_length": key}
            if key
            else {name: value for name, value in settings.items() if name != "model_max_length"}
        )
    )
    with pytest.raises(RequestError, match=said):
        check_files(model_of(tmp_path / "p", "flux_schnell"))


def test_missing_t5_passes_if_no_token_of_it_is_used(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(tiny_folder("sd3"), tmp_path / "p")
    for part in ("tokenizer_3", "text_encoder_3"):
        shutil.rmtree(tmp_path / "p" / part)
    check_files(replace(model_of(tmp_path / "p", "sd3"), max_sequence_length=0))
    with pytest.raises(RequestError, match="text_encoder_3"):
        check_files(model_of(tmp_path / "p", "sd3"))


class Words:
    """As much of a tokenizer as is looked at."""

    def __init__(self, words: int, added: int = 0, longest: int = 77, **settings: Any) -> None:
        self.vocab_files_names = {"vocab_file": "vocab.txt"}
        self.added_tokens_decoder = {words + i: f"<{i}>" for i in range(added)}
        self.vocab = {**{f"w{i}": i for i in range(words)}, **{f"<{i}>": words + i for i in range(added)}}
        self.all_special_tokens = ["w0"]
        self.model_max_length, self.init_kwargs = longest, settings

    def get_vocab(self) -> dict[str, int]:
        return self.vocab

    def __len__(self) -> int:
        return len(self.vocab)


@pytest.mark.parametrize(
    ("words", "added", "vocabulary"),
    [
        (49408, 0, 49408),
        (32000, 100, 32128),
        (151643, 26, 152064),
        (151643, 26, 151936),
        (30522, 0, 30524),
        (256000, 0, 256000),
        (270, 3, 1000),
        (514, 0, 642),
        (9, 0, 9),
        (49408, 3, 49408),
        (32100, 28, 32128),
    ],
)
def test_padded_vocabularies_and_added_tokens_are_sound(words: int, added: int, vocabulary: int) -> None:
    check_tokenizer(Words(words, added), vocabulary, "here")


@pytest.mark.parametrize(
    ("words", "added", "vocabulary"),
    [
        (0, 104, 98),
        (1, 5, 6),
        (2, 0, 49408),
        (0, 1, 151936),
        (1000, 0, 49408),
        (20000, 0, 49408),
        (64, 0, 644),
    ],
)
def test_vocabulary_that_is_far_too_small_is_refused(words: int, added: int, vocabulary: int) -> None:
    with pytest.raises(ValueError, match=r"^the tokenizer of here (has no vocabulary|knows)"):
        check_tokenizer(Words(words, added), vocabulary, "here")


@pytest.mark.parametrize(("merges", "sound"), [(2000, True), (400, False), (0, False)])
def test_merges_that_are_cut_are_refused(merges: int, sound: bool) -> None:
    letters = [chr(0x4E00 + place) for place in range(50)]
    pairs = list(product(letters, letters))[:2000]
    words = {word: place for place, word in enumerate([*letters, *map("".join, pairs)])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(BPE(vocab=words, merges=pairs[:merges])), model_max_length=77
    )
    with nullcontext() if sound else pytest.raises(ValueError, match=f"{merges} merges for 2,050 words"):
        check_tokenizer(tokenizer, len(words), "here")


def test_tokenizer_must_state_its_length() -> None:
    check_tokenizer(Words(9, longest=10**30, model_max_length=10**30), 9, "here")
    with pytest.raises(ValueError, match="no model_max_length"):
        check_tokenizer(Words(9, longest=10**30), 9, "here")
    with pytest.raises(ValueError, match="model_max_length=78, .* positions for 77"):
        check_tokenizer(Words(9, longest=78), 9, "here", 77)


# Weights


def embedded(folder: Path) -> Path:
    shutil.copytree(EMBEDDED, folder)
    return folder


def as_variant(folder: Path, variant: str) -> None:
    for file in list(folder.rglob("*.safetensors")):
        file.rename(file.with_name(f"{file.stem}.{variant}.safetensors"))


def in_shards(folder: Path) -> None:
    from diffusers import SD3Transformer2DModel

    transformer = SD3Transformer2DModel.from_pretrained(folder)
    shutil.rmtree(folder)
    transformer.save_pretrained(folder, max_shard_size="4MB")


def tiny_model(folder: Path, *overrides: str) -> ModelConfig:
    return compose(["rewards=colorfulness", f"model.path={folder}", "model.device=cpu", *overrides]).model


@pytest.mark.parametrize("variant", ["fp16", "1.10"])
def test_weights_of_a_variant_are_named_and_load_with_model_variant(tmp_path: Path, variant: str) -> None:
    folder = embedded(tmp_path / "p")
    as_variant(folder, variant.replace(".", "_"))
    variant = variant.replace(".", "_")
    for fails in (check_files, lambda model: load_policy(model, 0)):
        with pytest.raises(
            RequestError, match=rf"weights of the variant {variant} alone\. Set model\.variant={variant}"
        ):
            fails(tiny_model(folder))
    asked = tiny_model(folder, f"model.variant={variant}")
    check_files(asked)
    plain = load_policy(tiny_model(EMBEDDED), 0)
    assert load_policy(asked, 0).weights == plain.weights


def test_network_without_the_variant_uses_the_plain_weights(tmp_path: Path) -> None:
    folder = embedded(tmp_path / "p")
    as_variant(folder / "vae", "fp16")
    check_files(tiny_model(folder, "model.variant=fp16"))
    with pytest.raises(RequestError, match=r"vae holds weights of the variant fp16 alone"):
        check_files(tiny_model(folder))


def test_missing_shard_of_weights_is_named(tmp_path: Path) -> None:
    folder = embedded(tmp_path / "p")
    in_shards(folder / "transformer")
    parts = sorted((folder / "transformer").glob("*-of-*.safetensors"))
    assert len(parts) > 1
    check_files(tiny_model(folder))
    parts[-1].unlink()
    with pytest.raises(RequestError, match=f"{parts[-1].name} is missing, which .*transformer lists"):
        check_files(tiny_model(folder))


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "text_encoder_2"])
def test_network_without_weights_is_named(tmp_path: Path, part: str) -> None:
    folder = embedded(tmp_path / "p")
    (file,) = (folder / part).glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(RequestError, match=f"{part}/{file.name} is damaged or cut short"):
        check_files(tiny_model(folder))
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(RequestError, match=f"{part} holds {file.stem}.bin, which is pickled and is not read"):
        check_files(tiny_model(folder))
    file.with_suffix(".bin").unlink()
    with pytest.raises(RequestError, match=f"{part} holds no weights: {file.name} is missing"):
        check_files(tiny_model(folder))


def test_revision_of_a_folder_is_reported_to_have_no_effect(caplog: pytest.LogCaptureFixture) -> None:
    check_files(tiny_model(EMBEDDED))
    assert not caplog.records
    check_files(tiny_model(EMBEDDED, "model.revision=1.10"))
    assert f"model.revision=1.10 has no effect: model.path={EMBEDDED} is a folder" in caplog.text
