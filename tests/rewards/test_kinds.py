"""Types of metadata that a reward may require, and what is said of a value of another."""

import json
from typing import Any, Optional

import pytest

from marble_cli.errors import RewardError
from marble_cli.rewards.api import Declaration
from marble_cli.rewards.applicability import fit_metadata, metadata_problem
from marble_cli.rewards.elsewhere.protocol import declaration_from_json, declaration_to_json

OBJECTS = {"include": [{"class": str, "count": int, "color": str | None}]}


def objects(**entry: Any) -> dict[str, Any]:
    return {"include": [{"class": "cup", "count": 1}, {"class": "cup", "count": 1} | entry]}


@pytest.mark.parametrize(
    ("requires", "metadata"),
    [
        ("text", {"text": 13}),
        (("text", "level"), {"text": 13}),
        (None, {"text": 13}),
        ({"text": str}, {"text": ""}),
        ({"text": str}, {}),  # it does not apply
        ({"text": str | None}, {"text": None}),
        ({"text": Optional[str]}, {"text": "x"}),  # noqa: UP045 - as older plugins write it
        ({"level": float}, {"level": 3}),
        ({"level": float}, {"level": float("nan")}),
        ({"level": int}, {"level": 47.0}),
        ({"level": int}, {"level": -1}),
        ({"on": bool}, {"on": False}),
        ({"it": object}, {"it": None}),
        ({"it": Any}, {"it": [1]}),
        ({"words": list[str]}, {"words": ["a", "b"]}),
        ({"words": [str]}, {"words": []}),
        ({"words": ([str], str)}, {"words": "a"}),
        ({"box": dict}, {"box": {1: 2}}),
        (OBJECTS, objects()),
        (OBJECTS, objects(count=2.0, color=None, more="x")),
    ],
)
def test_a_value_of_the_required_type_is_accepted(requires: Any, metadata: dict[str, Any]) -> None:
    assert metadata_problem(requires, metadata) is None


@pytest.mark.parametrize(
    ("requires", "metadata", "said"),
    [
        ({"text": str}, {"text": 13}, "metadata text=13: expected a string"),
        ({"text": str}, {"text": None}, "metadata text=None: expected a string"),
        ({"text": str}, {"text": ["47"]}, "metadata text=['47']: expected a string"),
        ({"text": str | None}, {"text": 47.0}, "metadata text=47.0: expected a string or null"),
        ({"level": int}, {"level": 47.5}, "metadata level=47.5: expected a whole number"),
        ({"level": int}, {"level": float("inf")}, "metadata level=inf: expected a whole number"),
        ({"level": int}, {"level": "47"}, "metadata level='47': expected a whole number"),
        ({"level": int}, {"level": True}, "metadata level=True: expected a whole number"),
        ({"level": float}, {"level": False}, "metadata level=False: expected a number"),
        ({"on": bool}, {"on": 1}, "metadata on=1: expected true or false"),
        ({"words": [str]}, {"words": ["a", 2]}, "metadata words[1]=2: expected a string"),
        ({"words": list[str]}, {"words": "ab"}, "metadata words='ab': expected a list, each a string"),
        ({"words": ([str], None)}, {"words": [1]}, "metadata words[0]=1: expected a string"),
        (OBJECTS, objects(count=2.5), "metadata include[1].count=2.5: expected a whole number"),
        (OBJECTS, objects(color=3), "metadata include[1].color=3: expected a string or null"),
        (
            OBJECTS,
            {"include": [{"class": "cup"}]},
            "metadata include[0]={'class': 'cup'}: its key 'count' is missing",
        ),
        (
            OBJECTS,
            {"include": {}},
            "metadata include={}: expected a list, each a mapping with class, count, color",
        ),
    ],
)
def test_a_value_of_another_type_is_refused(requires: Any, metadata: dict[str, Any], said: str) -> None:
    def plugin() -> None:
        """A reward."""

    plugin.requires = requires  # type: ignore[attr-defined]
    declared = Declaration.of(plugin)
    travelled = declaration_from_json(json.loads(json.dumps(declaration_to_json(declared))))
    assert travelled == declared
    for reward in (requires, plugin, declared, travelled):
        assert metadata_problem(reward, metadata) == said


def test_a_long_value_is_shown_in_part() -> None:
    said = metadata_problem({"text": int}, {"text": "x" * 9999})
    assert said is not None
    assert len(said) < 120


def test_a_key_that_may_be_missing_is_not_required() -> None:
    def plugin() -> None:
        """A reward."""

    plugin.requires = {"text": str, "level": int | None}  # type: ignore[attr-defined]
    assert Declaration.of(plugin).requires == ("text",)
    assert metadata_problem(lambda images: images, {"text": 13}) is None


def test_integral_floats_become_integers_and_nothing_else_is_copied() -> None:
    types = Declaration.of(type("Plugin", (), {"requires": OBJECTS | {"level": int | None}})).types
    before = {"level": 47.0, "include": [{"class": "cup", "count": 2.0, "box": [1.0]}], "tag": 3.0}
    after = fit_metadata(types, before)
    assert repr(after) == "{'level': 47, 'include': [{'class': 'cup', 'count': 2, 'box': [1.0]}], 'tag': 3.0}"
    assert repr(before["level"]) == "47.0"
    assert fit_metadata(types, after) is after
    assert (
        repr(fit_metadata(Declaration.of(type("P", (), {"requires": {"a": int | float}})).types, {"a": 2.0}))
        == "{'a': 2.0}"
    )


@pytest.mark.parametrize(
    "requires", [{"a": complex}, {"a": 3}, {"a": "str"}, {"a": [int, str]}, 5, [3], {"a": [{"b": 1}]}]
)
def test_a_requirement_that_is_no_type_is_refused(requires: Any) -> None:
    with pytest.raises(RewardError, match="`requires` (names the type|is) .*Expected"):
        metadata_problem(requires, {"a": 1})
