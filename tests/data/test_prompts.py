"""Prompt files: what is read, and what a bad one is told."""

from pathlib import Path

import pytest

from marble_cli.data.prompts import held_out, read_prompts
from marble_cli.errors import DataError


def test_json_lines_carry_metadata(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a sign that says \\"47\\"", "text": "47"}\n\n{"prompt": "a cup"}\n')
    first, second = read_prompts(file, "text")
    assert (first.text, first.metadata, first.source) == ('a sign that says "47"', {"text": "47"}, "text")
    assert second.metadata == {}


def test_plain_text_is_one_prompt_a_line(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("a cup\n  a boat  \n\n")
    assert [prompt.text for prompt in read_prompts(file, "general")] == ["a cup", "a boat"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"prompt": "a"}\n{"prompt": "b"\n', "line 2: not valid JSON"),
        ('{"text": "47"}\n', 'line 1: no text under the key "prompt"'),
        ('{"prompt": 3}\n', 'line 1: no text under the key "prompt"'),
        ('["a"]\n', 'line 1: no text under the key "prompt"'),
        ("\n\n", "is empty"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(content)
    with pytest.raises(DataError, match="p.jsonl") as error:
        read_prompts(file, "text")
    assert said in str(error.value)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r"Did you mean .*train\.jsonl"):
        read_prompts(tmp_path / "trian.jsonl", "general")


def test_held_out_takes_the_first_of_every_source(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("".join(f"{name}{i}\n" for i in range(5)))
    prompts = {name: read_prompts(tmp_path / f"{name}.txt", name) for name in "ab"}
    assert [prompt.text for prompt in held_out(prompts, 2)] == ["a0", "a1", "b0", "b1"]
