"""The facts for the reference pages: every configuration key, once, with its comment."""

import dataclasses
import typing
from collections import Counter
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from marble_cli.config.compose import compose
from marble_cli.config.keys import fields
from marble_cli.config.schema import AspectConfig, RunConfig
from scripts.reference import __main__ as reference
from scripts.reference import configuration
from scripts.reference.configuration import Key, keys

KEYS = {key.path: key for key in keys()}


def schema_paths(node: typing.Any, prefix: str = "") -> list[str]:
    """Return the paths of the schema's keys, found without the script; an aspect's are a reward's own."""
    paths: list[str] = []
    for name, kind in fields(node).items():
        value = typing.get_args(kind)[1] if typing.get_origin(kind) is dict else kind
        inner = f"{prefix}{name}." if value is kind else f"{prefix}{name}.<name>."
        nested = dataclasses.is_dataclass(value) and value is not AspectConfig
        paths += schema_paths(value, inner) if nested else [f"{prefix}{name}"]
    return paths


def test_keys_of_the_schema_appear_exactly_once() -> None:
    assert Counter(key.path for key in keys()) == Counter(schema_paths(RunConfig))


@pytest.mark.parametrize("key", KEYS.values(), ids=list(KEYS))
def test_key_has_comment_default_and_file(key: Key) -> None:
    assert len(key.comment) > 5
    assert key.default
    assert (configuration.CONF / key.file).is_file()


def test_key_has_type_range_choices_and_default() -> None:
    assert KEYS["optimizer.lr"] == Key(
        path="optimizer.lr",
        type="float",
        default="3.0e-4",
        choices=(),
        range="a number above 0",
        comment=KEYS["optimizer.lr"].comment,
        file="optimizer/adamw.yaml",
    )
    assert KEYS["evaluation.solver"].type == "choice or null"
    assert KEYS["evaluation.solver"].choices == ("euler", "dpm2")
    assert KEYS["balance.priorities"].type == "mapping of names to float"
    assert KEYS["balance.priorities"].range == "a number above 0"
    assert KEYS["launcher.setup"].type == "list of str"


def test_comment_above_key_is_joined_into_one_line() -> None:
    comment = KEYS["balance.mode"].comment
    assert comment.startswith("When each reward's gradient is taken. full:")
    assert comment.endswith("that cached weights push a reward down.")


def test_default_of_key_without_line_is_the_schemas() -> None:
    """A comment cannot be composed, so what it says of the default is compared with the schema."""
    config = compose(["rewards=compressibility", "data=files", "data.root=x", "run.name=x"])
    for group, node in (
        ("rewards.<name>", config.rewards["compressibility"]),
        ("data.sources.<name>", config.data.sources["prompts"]),
    ):
        for field in dataclasses.fields(node):
            value = getattr(node, field.name)
            stated = OmegaConf.create(f"value: {KEYS[f'{group}.{field.name}'].default}").value
            assert stated == (value.value if hasattr(value, "value") else value), field.name


@pytest.mark.parametrize("line", ["lr: 3.0e-4", "learning_rate: 3.0e-4 # learning rate"])
def test_key_without_comment_or_line_fails(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in configuration.FILES:
        text = (configuration.CONF / f"{name}.yaml").read_text()
        file = tmp_path / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        lines = [line if row.startswith("lr: ") else row for row in text.splitlines()]
        file.write_text("\n".join(lines))
    monkeypatch.setattr(configuration, "CONF", tmp_path)
    with pytest.raises(ValueError, match=r"optimizer\.lr has no comment"):
        keys()


def test_pages_are_written_to_their_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    committed = {name: (reference.DOCS / name).read_text(encoding="utf-8") for name in reference.PAGES}
    monkeypatch.setattr(reference, "DOCS", tmp_path)
    reference.main()
    assert {file.name: file.read_text(encoding="utf-8") for file in tmp_path.iterdir()} == committed
