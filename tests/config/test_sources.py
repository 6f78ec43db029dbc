"""Configuration of prompt sources: the published ones, and keys that contradict each other."""

import dataclasses
from pathlib import Path

import pytest

from marble_cli.config.compose import compose
from marble_cli.config.enums import Quotes
from marble_cli.config.schema import SourceConfig
from marble_cli.errors import ConfigError
from tests.config.composing import BUILT_IN, written

PROMPTS = Path(__file__).parents[2] / "docs" / "how-to" / "prompts.md"


def test_source_takes_keys_that_no_file_names(tmp_path: Path) -> None:
    config, file = written(
        tmp_path,
        BUILT_IN,
        "data.sources.text.quoted_as=word",
        "data.sources.general.metadata.tag=plain",
        "data.sources.general.metadata.level={a: [1, 2]}",
        "data.sources.general.negative_prompt='grey, blurred'",
        "+data.sources.more={hub: owner/name, revision: main, train: 'train[:9]', test: test, "
        "prompt_key: caption}",
    )
    general, more = config.data.sources["general"], config.data.sources["more"]
    assert general.metadata == {"tag": "plain", "level": {"a": [1, 2]}}
    assert general.negative_prompt == "grey, blurred"
    assert config.data.sources["text"].quoted_as == "word"
    assert more == SourceConfig("train[:9]", "test", 1.0, "owner/name", None, "main", "caption")
    assert compose([], file) == config
    assert compose(["~data.sources.general.metadata.tag"], file).data.sources["general"].metadata == {
        "level": {"a": [1, 2]}
    }


def test_published_sources_have_equal_weights() -> None:
    sources = compose([BUILT_IN, "data=paper", "data.root=/data"]).data.sources
    assert {name: (s.train, s.test, s.weight, s.quoted_as) for name, s in sources.items()} == {
        "pickscore": ("pickscore/train.txt", "pickscore/test.txt", 1.0, None),
        "ocr": ("ocr/train.txt", "ocr/test.txt", 1.0, "text"),
        "geneval": ("geneval/train_metadata.jsonl", "geneval/test_metadata.jsonl", 1.0, None),
    }


def test_paper_quotes_differs_from_paper_only_in_quotes() -> None:
    sources = compose([BUILT_IN, "data=paper_quotes", "data.root=/data"]).data.sources
    assert {name: (s.quoted_as, s.quotes) for name, s in sources.items()} == dict.fromkeys(
        ("pickscore", "ocr", "geneval"), ("text", Quotes.straight)
    )
    plain = compose([BUILT_IN, "data=paper", "data.root=/data"]).data.sources
    again = {
        n: dataclasses.replace(s, quoted_as=plain[n].quoted_as, quotes=Quotes.required)
        for n, s in sources.items()
    }
    assert again == plain


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            "data.sources.text.quotes=straight",
            "data.sources.text.quotes=straight: nothing asks for what is in quotes",
        ),
        ("data.sources.text.quotes=curly", "data.sources.text.quotes"),
        ("data=hub", "data.sources.prompts.hub has no value"),
        ("data.sources.txt.weight=2", "data.sources.txt: there is no such source; did you mean 'text'"),
        ("data.sources.text.quoted_is=x", "did you mean 'data.sources.text.quoted_as'"),
        ("+data.sources.more={train: a.txt}", "data.sources.more={train: FILE, test: FILE}"),
        ("data.sources.txt.train=a.txt", "data.sources.txt: there is no such source; did you mean 'text'"),
        ("+data.sources.more=3", "data.sources.more"),
        (
            "data.sources.text.train=a.yaml",
            "data.sources.text.train=a.yaml: expected a file that ends in .txt, .jsonl, .ndjson",
        ),
        ("data.sources.text.train=", "data.sources.text.train is empty. Expected a name."),
        ("data.sources.text.hub=' '", "data.sources.text.hub is empty. Expected a name, or null."),
        (
            "data.sources.text.subset=x",
            "data.sources.text.subset=x: files have none. Expected it beside data.sources.text.hub",
        ),
        ("data.sources.text.revision=x", "data.sources.text.revision=x: files have none"),
        (
            "data=files data.root=x data.sources.prompts.prompt_key=caption",
            "train.txt is plain text, which has no keys",
        ),
        ("data.sources.text.metadata.prompt=x", "data.sources.text says already where 'prompt' comes from"),
        ("data.sources.text.metadata.negative_prompt=x", "says already where 'negative_prompt' comes from"),
        ("data.sources.text.metadata.t=x data.sources.text.quoted_as=t", "says already where 't' comes from"),
        (
            "data.sources.text.quoted_as=prompt",
            "data.sources.text.quoted_as=prompt: expected a key of metadata",
        ),
        ("data.sources.text.image_key=prompt", "image_key=prompt: data.sources.text takes text from there"),
        (
            "data.sources.text.resolution_key=image",
            "resolution_key=image: data.sources.text takes a text or a",
        ),
        ("data.sources.text.metadata.resolution=64", "says already where 'resolution' comes from"),
        (
            "data.aspect_ratio_buckets=[64,6x4]",
            "data.aspect_ratio_buckets=['64', '6x4']: expected a list such",
        ),
        (
            "data.aspect_ratio_buckets=[]",
            "data.aspect_ratio_buckets=[]: expected a list such as [512,640x416",
        ),
        ("data.sources.text.image_key=", "data.sources.text.image_key is empty. Expected a name, or null."),
        ("data.sources.text.quoted_as=image", "quoted_as=image: expected a key of metadata"),
        ("data.sources.text.metadata.image=x", "data.sources.text says already where 'image' comes from"),
        ("data.sources.text.metadata=x", "data.sources.text.metadata"),
    ],
)
def test_contradicting_source_keys_are_refused(overrides: str, said: str) -> None:
    parts = overrides.split(" data") if " data" in overrides else [overrides]
    with pytest.raises(ConfigError) as error:
        compose([BUILT_IN, parts[0], *(f"data{part}" for part in parts[1:])])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"])
def test_prompt_files_have_the_endings_of_the_documentation(ending: str) -> None:
    assert (
        compose([BUILT_IN, f"data.sources.text.train=a{ending}"]).data.sources["text"].train == f"a{ending}"
    )
    assert f"`{ending}`" in PROMPTS.read_text(encoding="utf-8")


def test_sources_without_weight_are_refused() -> None:
    zero = [f"data.sources.{name}.weight=0" for name in ("general", "text", "compositional")]
    compose([BUILT_IN, *zero[:2]])
    with pytest.raises(ConfigError, match="at least one source"):
        compose([BUILT_IN, *zero])
