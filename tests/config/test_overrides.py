"""What a key of text takes from an override: the value as it was written."""

from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from marble_cli.config.compose import compose, dump, load_resolved
from marble_cli.config.keys import kind_of, required_kind
from marble_cli.config.overrides import parse
from marble_cli.config.schema import RunConfig
from marble_cli.errors import ConfigError

BUILT_IN = "rewards=[colorfulness,compressibility]"
NUMBERS = [
    "1.10",
    "1.0",
    "1e3",
    "1E-3",
    "007",
    "0x10",
    "0b1",
    "1_000",
    "-1",
    "+5",
    ".5",
    "5.",
    "inf",
    "-Inf",
    "nan",
    "NaN",
    "1.10.0",
    "0",
    "00",
    "12:30:00",
    "2024-01-01",
    "2024-01-01_10-00",
    "100000000000000000000",
    "0.1e1",
]
WORDS = ["true", "True", "FALSE", "null", "NULL", "on", "yes", "no", "None", "~", "?", "??"]
UNREADABLE = [
    "a(b",
    "a)",
    "lr(3e-4)",
    "(1)",
    "a,b",
    "1,2",
    ",",
    "[a]",
    "[red]",
    "[1, 2]",
    "{a: b}",
    "{",
    "}",
    "]",
    "a=b",
    "=",
    "x:",
    ":",
    "a: b",
    "größe",
    "模型",
    "🙂",
    "it's",
    "'",
    '"',
    'say "x"',
    "a;b",
    "a&b",
    "#a",
    "!a",
    "<a>",
    "a^b",
    "`a`",
    "choice(a,b)",
    "range(1,3)",
    "str(1.10)",
    "int(3)",
    "glob(*)",
    "a\nb",
    "a\u00a0b",
    "e\u0301",
    "１",
]


def composed(*overrides: str) -> RunConfig:
    return compose([BUILT_IN, "run.dir=here", *overrides])


@pytest.mark.parametrize("value", [*NUMBERS, *WORDS, *UNREADABLE])
def test_a_key_of_text_takes_what_was_written(value: str) -> None:
    config = composed(f"model.device={value}")
    assert config.model.device == value
    assert composed(f"++model.device={value}").model == config.model


@pytest.mark.parametrize("value", [*NUMBERS, "true", "NaN", "a,b", "größe", "x(1)"])
@pytest.mark.parametrize(
    "key",
    [
        "run.name",
        "model.device",
        "model.revision",
        "logging.wandb.project",
        "logging.wandb.entity",
        "data.sources.text.quoted_as",
        "data.sources.text.negative_prompt",
        "rewards.colorfulness.plugin",
        "eval_rewards.x.token_env",
        "balance.solver",
        "launcher.memory",
        "trainer.best",
    ],
)
def test_every_key_of_text_does_so(key: str, value: str) -> None:
    """Read off the override itself, for some keys take no such value in the end."""
    assert required_kind(kind_of(key)) is str
    (override,) = parse([f"{key}={value}"])
    assert override.value() == value
    (again,) = parse([str(override.input_line)])
    assert again.value() == value


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("'1.10'", "1.10"),
        ('"a\'b"', "a'b"),
        ("'it\\'s'", "it's"),
        ("''", ""),
        ("", ""),
        ("' a '", " a "),
        (" a ", "a"),
        ("a\\,b", "a,b"),
        ("a\\ b", "a b"),
        ("a b", "a b"),
        ("'a' b", "'a' b"),
        ("\\\\", "\\"),
        ("'[a]'", "[a]"),
        ("'null'", "null"),
    ],
)
def test_quotes_and_backslashes_mean_what_they_mean_to_hydra(written: str, value: str) -> None:
    assert composed(f"model.device={written}").model.device == value


@pytest.mark.parametrize("written", ["null", "NULL", "Null"])
@pytest.mark.parametrize("key", ["revision", "embedding_cache"])
def test_null_is_none_where_a_key_may_have_none(key: str, written: str) -> None:
    assert getattr(composed(f"model.{key}={written}").model, key) is None
    assert composed("model.revision='null'").model.revision == "null"


def test_references_to_other_keys_and_the_environment_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARK", "1.10")
    config = composed(
        "run.name=v${trainer.seed}", "model.device=${oc.env:MARK}", "model.revision=${run.name}(x)"
    )
    assert (config.run.name, config.model.device, config.model.revision) == ("v0", "1.10", "v0(x)")


@pytest.mark.parametrize("value", ["${", "a${b", "${a b}", "${trainer.seed}${"])
def test_a_reference_that_cannot_be_read_is_told(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^run\.name=.*: \$\{ begins a reference to another key") as error:
        composed(f"run.name={value}")
    assert "viable" not in str(error.value)


def test_texts_in_lists_and_mappings_are_taken_as_written_too() -> None:
    lora = composed("model.lora.target_modules=[to_q, 1e3, 007, true, null, '1.10', a\\,b]").model.lora
    assert lora.target_modules == ["to_q", "1e3", "007", "true", "null", "1.10", "a,b"]
    config = composed(
        "+data.sources.more={train: 1.txt, test: 2.txt, weight: 2, quoted_as: 1.10, subset: null, "
        "metadata: {a: 1.10, b: x}}",
        "+rewards.mine={plugin: colorfulness, weight: 1e1, requires: [1.10, true], timeout: 5, "
        "token_env: null, depth: 1.10}",
        "balance.groups={both: [colorfulness, compressibility]}",
        "launcher=slurm",
        "launcher.setup=[true, ulimit -n 1_000]",
    )
    source, mine = config.data.sources["more"], config.rewards["mine"]
    assert (source.quoted_as, source.subset, source.weight, source.metadata) == (
        "1.10",
        None,
        2.0,
        {"a": 1.1, "b": "x"},
    )
    assert (mine.requires, mine.weight, mine.token_env, mine.options) == (
        ["1.10", "true"],
        10.0,
        None,
        {"depth": 1.1},
    )
    assert config.launcher.setup == ["true", "ulimit -n 1_000"]


def test_references_in_mappings_are_followed() -> None:
    config = composed(
        "+rewards.mine={plugin: ${balance.name}x, optional: true, sources: [general]}", "run.name=a"
    )
    assert "mine" not in config.rewards  # balance.name + x is no reward that is installed
    mine = composed(
        "+rewards.mine={plugin: colorfulness, requires: ['${run.name}', a${run.name}]}", "run.name=1.10"
    )
    assert mine.rewards["mine"].requires == ["1.10", "a1.10"]


def test_numbers_stay_numbers() -> None:
    config = composed(
        "trainer.steps=1_000",
        "optimizer.lr=1e-5",
        "trainer.fsdp.reshard=false",
        "trainer.times_per_image=null",
        "rewards.compressibility.quality=40",
        "data.sources.text.metadata.level=1.10",
        "optimizer.betas=[0.5, 0.6]",
    )
    assert (config.trainer.steps, config.optimizer.lr, config.trainer.fsdp.reshard) == (1000, 1e-5, False)
    assert config.rewards["compressibility"].options == {"quality": 40}
    assert config.data.sources["text"].metadata == {"level": 1.1}
    assert config.trainer.times_per_image is None


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.steps=(3", "trainer.steps=(3: expected a whole number"),
        ("optimizer.lr=3(e", "optimizer.lr=3(e: expected a number"),
        ("trainer.fsdp.reshard=ü", "trainer.fsdp.reshard=ü: expected true or false"),
        ("model.compile=ü", "model.compile=ü: expected one of auto, true, false"),
        ("model.precision=ü", "model.precision=ü: expected one of fp32, bf16, fp16"),
        ("trainer.times_per_image=ü", "trainer.times_per_image=ü: expected a whole number"),
        ("rewards.colorfulness.mark=How (good, bad)?", "'rewards.colorfulness.mark=\"How (good, bad)?\"'"),
        ("data.sources.text.metadata.tag=größe", "e.g. 'data.sources.text.metadata.tag=\"größe\"'"),
        ("model.lora.target_modules=[to_q,(]", "needs quotes of its own"),
        ("balance=ü", "cannot be read"),
        ("rnu.name=ü", "there is no key 'rnu.name'; did you mean 'run"),
        ("run.nmae=a(b", "did you mean 'run.name'"),
        ("größe=1", "cannot be read. Expected e.g. trainer.steps=10"),
        ("rewards=[colorfulness", "cannot be read"),
        ("trainer.steps=" + "[" * 3000, "trainer.steps="),
    ],
)
def test_what_hydra_cannot_read_elsewhere_is_told_with_the_way_to_write_it(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        composed(override)
    assert said in str(error.value)
    assert not {"Lexer", "viable", "mismatched", "token", "Recognition"} & set(str(error.value).split())
    assert "\n" not in str(error.value)


def test_the_way_to_write_it_works() -> None:
    said = 'rewards.colorfulness.mark="How (good, \\"bad\\")?"'
    assert composed(said).rewards["colorfulness"].options == {"mark": 'How (good, "bad")?'}


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=12))
@example("\\'")
@example("'\\")
@example("a\\\\'b")
@example("$\\{x}")
def test_any_text_reaches_its_key_or_is_refused(text: str) -> None:
    with suppress(ConfigError):
        (override,) = parse([f"run.name={text}"])
        hydras = text.strip(" \t").strip() if not set(text) & set("\\'\"") else None
        assert hydras is None or str(override.value()).strip() == hydras
        value = composed(f"model.device={text}").model.device
        assert "${" in text or value == override.value()


@pytest.mark.parametrize("name", ["1.10", "[red]x[/]", "007", "größe (2)", "a,b=c: d", "null", "#1"])
def test_a_repeated_run_keeps_the_text(tmp_path: object, name: str) -> None:
    from pathlib import Path

    config = composed(f"run.name={name}", f"model.revision={name}" if name != "null" else "model.revision=x")
    file = Path(str(tmp_path)) / "config.yaml"
    file.write_text(dump(config), encoding="utf-8")
    assert load_resolved(file) == config
    assert config.run.name == name
