"""What is written as YAML reads back as the same values, texts as texts."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from marble_cli.config.yaml_text import write_yaml

TEXTS = (
    *("y", "N", "yes", "off", "True", "null", "~", "", "nan", ".inf", "Infinity", "<<", "="),
    *("1", "1_000", "0x10", "017", "0o7", "1e-5", "1E5", "1.", ".5", "+1", "12:30:45", "2026-11-27", "١٢"),
    *("a: b", "- a", "# x", "a #b", "'q'", '"q"', "%", "@a", "`a", "!tag", "&a", "*a", "|", "{", "[a", "?"),
    *("a\nb", "a\n", "\tb", " lead", "trail ", "a b " * 60, "é 日本", "\u2028", "\x07"),
)
NUMBERS = [1, -0.0, 2.5, 1e-5, 1e22, float("inf"), 10**30, True, None, [], {}, [[{"a": [1]}]]]


@pytest.mark.parametrize("texts", [TEXTS, ("😀",)], ids=["texts", "emoji"])
def test_texts_stay_texts_and_numbers_numbers(texts: tuple[str, ...]) -> None:
    tree: dict[str, Any] = {"texts": [*texts], "keys": dict.fromkeys(filter(None, texts), 1), "n": NUMBERS}
    written, known = write_yaml(tree), OmegaConf.create(tree)
    assert OmegaConf.to_container(OmegaConf.create(written)) == tree
    if texts is TEXTS:
        assert written == OmegaConf.to_yaml(known)


def test_a_reference_is_written_as_it_is() -> None:
    assert write_yaml({"token": "${oc.env:JUDGE_KEY}", "pair": (1, "2")}) == (
        "token: ${oc.env:JUDGE_KEY}\npair:\n- 1\n- '2'\n"
    )
