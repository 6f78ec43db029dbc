"""Prompt files: what is read, and what a bad one is told."""

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest

from marble_cli.config.enums import Quotes
from marble_cli.config.schema import DataConfig, SourceConfig
from marble_cli.data.prompts import Prompt, held_out, load_prompts, quoted
from marble_cli.errors import DataError

Reader = Callable[..., list[Prompt]]


def test_json_lines_carry_metadata(tmp_path: Path, read: Reader) -> None:
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "a sign that says \\"47\\"", "text": "47"}\n\n{"prompt": "a cup", "text": null}\n'
    )
    first, second = read("p.jsonl")
    assert first == Prompt('a sign that says "47"', {"text": "47"}, "signs", "")
    assert second.metadata == {}


def test_geneval_rows_are_read_unchanged(tmp_path: Path, read: Reader) -> None:
    row = {
        "tag": "position",
        "include": [
            {"class": "bed", "count": 1},
            {"class": "zebra", "count": 1, "position": ["right of", 0]},
        ],
        "prompt": "a photo of a zebra right of a bed",
    }
    (tmp_path / "train_metadata.jsonl").write_text(json.dumps(row) + "\n")
    assert read("train_metadata.jsonl") == [
        Prompt(row["prompt"], {"tag": row["tag"], "include": row["include"]}, "signs")  # type: ignore[arg-type]
    ]


def test_plain_text_has_one_prompt_per_line(tmp_path: Path, read: Reader) -> None:
    (tmp_path / "p.txt").write_bytes("\ufeffa cup\r\n  a böat\u2028b  \n\n".encode())
    assert [prompt.text for prompt in read("p.txt")] == ["a cup", "a böat\u2028b"]


def test_tables_have_a_line_of_headings(tmp_path: Path, read: Reader) -> None:
    (tmp_path / "p.csv").write_bytes('\ufeffprompt,Category\r\n"a red, car",Colors\r\na cup,\r\n'.encode())
    assert [(p.text, p.metadata) for p in read("p.csv")] == [
        ("a red, car", {"Category": "Colors"}),
        ("a cup", {}),
    ]
    (tmp_path / "gaps.csv").write_text('prompt,text\n"says ""12""",\na cup,9\n')  # an empty cell is no `text`
    assert [p.metadata for p in read("gaps.csv", quoted_as="text", metadata={"tag": "x"})] == [
        {"tag": "x", "text": "12"},
        {"tag": "x", "text": "9"},
    ]
    (tmp_path / "p.tsv").write_text('Prompt\tNote\na "red" car, new\t"two\nlines"\n')
    (prompt,) = read("p.tsv", prompt_key="Prompt")
    assert (prompt.text, prompt.metadata) == ('a "red" car, new', {"Note": "two\nlines"})
    for text in ('"47" on a red sign', '"stop'):  # quotes that enclose no cell
        (tmp_path / "p.tsv").write_text(f'prompt\ttext\na cup\t"b"\n{text}\t47\na dog\t48\n')
        assert [p.text for p in read("p.tsv")] == ["a cup", text, "a dog"]
        (tmp_path / "bad.csv").write_text(f"prompt\na cup\n{text}\na dog\n")
        with pytest.raises(DataError, match="cannot be read as a table: .* in line .* doubled"):
            read("bad.csv")
    (tmp_path / "bad.csv").write_text("prompt,Category\na,b\na,b,c\n")
    with pytest.raises(DataError, match="row 2: 3 cells under 2 headings"):
        read("bad.csv")
    (tmp_path / "twice.csv").write_text("prompt,a,a\nx,b,c\n")
    with pytest.raises(DataError, match=r"several columns have the heading 'a'"):
        read("twice.csv")


def test_a_quote_that_another_row_closes_is_part_of_its_cell(tmp_path: Path, read: Reader) -> None:
    texts = ['"Stop, said the owl', "a red bus", 'a record of 12"', "a cat"]
    kinds = ["birds", "buses", '12"', "cats"]
    (tmp_path / "p.tsv").write_text(
        "prompt\tkind\n" + "\n".join(map("\t".join, zip(texts, kinds, strict=True)))
    )
    assert [(p.text, p.metadata["kind"]) for p in read("p.tsv")] == [*zip(texts, kinds, strict=True)]
    cell = '"two\n\tlines"'
    for table in (
        f"prompt\tkind\n{cell}\tsigns\n{cell}\t{cell}\na cat\t{cell}\n",
        f"prompt\n{cell}\n{cell}\na cat\n",
    ):
        (tmp_path / "p.tsv").write_text(table)
        assert [p.text for p in read("p.tsv")] == ["two\n\tlines", "two\n\tlines", "a cat"]


def test_a_list_in_json_holds_prompts_or_rows(tmp_path: Path, read: Reader) -> None:
    for before in ("", "\ufeff", " \n\n", "\ufeff\r\n"):
        (tmp_path / "p.json").write_text(before + '[\n "a cup",\n {"prompt": "a bowl", "text": "47"}\n]')
        assert [(p.text, p.metadata) for p in read("p.json")] == [("a cup", {}), ("a bowl", {"text": "47"})]
    (tmp_path / "bad.json").write_text('["a cup", 3]')
    with pytest.raises(DataError, match="entry 2: neither a prompt nor a JSON object"):
        read("bad.json")
    (tmp_path / "cut.json").write_text('["a cup",')
    with pytest.raises(DataError, match="cannot be read as a list in JSON"):
        read("cut.json")


def test_root_tiny_reads_the_embedded_prompts() -> None:
    source = SourceConfig(train="text/train.jsonl", test="text/test.jsonl")
    first = load_prompts(DataConfig(root="tiny", sources={"text": source}), "test")["text"][0]
    file = files("marble_cli") / "assets" / "tiny" / "prompts" / "text" / "test.jsonl"
    assert first.text == json.loads(file.read_text().splitlines()[0])["prompt"]


# Keys of a source


def test_rows_name_the_size_of_their_images(tmp_path: Path, read: Reader) -> None:
    sizes = [512, "512", "512x512", " 768x512 ", "", None]
    rows = [{"prompt": f"a{i}", "resolution": size, "n": i} for i, size in enumerate(sizes)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "b"}]))
    found = read("p.jsonl")
    assert [prompt.resolution for prompt in found] == [512, 512, 512, "768x512", None, None, None]
    assert [prompt.drawn_at("64x48") for prompt in found[3:5]] == ["768x512", "64x48"]
    assert found[0].metadata == {"n": 0}
    (metadata, *_) = read("p.jsonl", resolution_key=None)
    assert (metadata.resolution, metadata.metadata) == (None, {"resolution": 512, "n": 0})
    for bad in ("tall", 7, "768*512", 512.5, True, [512, 512]):
        (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n' + json.dumps({**rows[0], "resolution": bad}))
        with pytest.raises(
            DataError, match=r"line 2: no size under the key \"resolution\" .*resolution_key=null"
        ):
            read("bad.jsonl")


def test_prompt_key_names_the_key_of_the_prompt(tmp_path: Path, read: Reader) -> None:
    (tmp_path / "p.jsonl").write_text('{"caption": "a cup", "prompt": "not this"}\n')
    (prompt,) = read("p.jsonl", prompt_key="caption")
    assert (prompt.text, prompt.metadata) == ("a cup", {"prompt": "not this"})


def test_source_metadata_fills_rows_that_lack_it(tmp_path: Path, read: Reader) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "tag": "own"}\n{"prompt": "b"}\n')
    assert [p.metadata for p in read("p.jsonl", metadata={"tag": "all", "level": 2})] == [
        {"tag": "own", "level": 2},
        {"tag": "all", "level": 2},
    ]


def test_negative_prompt_of_the_row_beats_that_of_the_source(tmp_path: Path, read: Reader) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "negative_prompt": " blurry "}\n{"prompt": "b"}\n')
    assert [(p.negative, p.metadata) for p in read("p.jsonl")] == [("blurry", {}), ("", {})]
    assert [p.negative for p in read("p.jsonl", negative_prompt="grey")] == ["blurry", "grey"]


@pytest.mark.parametrize(
    "text",
    [
        'a sign that says "Open now", in red',
        'it reads "X" and "Y"',
        '"Who are you" she said',
        'an \u201carch\u201d that says "B"',
        'apron with "Queen Anne\'s" on it',
    ],
)
def test_quoted_text_equals_the_published_rewards_target(tmp_path: Path, read: Reader, text: str) -> None:
    """Flow-GRPO takes the text after the first straight double quote, up to the next."""
    (tmp_path / "p.txt").write_text(text + "\n")
    (prompt,) = read("p.txt", quoted_as="text")
    assert prompt.metadata == {"text": text.split('"')[1]}


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ('the word "ALL", 8k', "ALL"),
        ('it reads "X" and "Y"', "X"),
        ('an \u201carch\u201d that says "B"', "B"),
        ('a 12" record', " record"),
        ("a \u201cHello\u201d sign", None),
        ("no word at all", None),
        ('nothing in "" but later "A"', None),
        ('a blank " " only', None),
        ("it's 'so'", None),
    ],
)
def test_straight_quotes_give_the_published_target(
    tmp_path: Path, read: Reader, text: str, target: str | None
) -> None:
    """As str.split finds it after the first straight double quote; other prompts lack the metadata."""
    (tmp_path / "p.txt").write_text(text + "\n")
    (prompt,) = read("p.txt", quoted_as="text", quotes=Quotes.straight)
    assert prompt.metadata == ({} if target is None else {"text": target})
    parts = text.split('"')
    assert (parts[1].strip() if len(parts) > 1 else "") == (target or "").strip()


def test_own_text_beats_straight_quotes(tmp_path: Path, read: Reader) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "says \\"B\\"", "text": "A"}\n')
    assert read("p.jsonl", quoted_as="text", quotes=Quotes.straight)[0].metadata == {"text": "A"}


def test_curly_quotes_are_used_without_straight_ones() -> None:
    assert quoted("a \u201cHello\u201d sign") == "Hello"
    assert quoted("a cat's \u201dHello\u201c") == ""
    assert quoted('12" wide') == ""


def test_own_text_beats_quoted_text(tmp_path: Path, read: Reader) -> None:
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "no quotes", "text": "A"}\n{"prompt": "says \\"B\\"", "text": null}\n'
    )
    assert [p.metadata for p in read("p.jsonl", quoted_as="text")] == [{"text": "A"}, {"text": "B"}]


# Mistakes


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"prompt": "a"}\n{"prompt": "b"\n', "line 2: not valid JSON"),
        ('{"text": "47", "tag": 1}\n', 'line 1: no text under the key "prompt" (its keys: text, tag)'),
        ('{"prompt": " "}\n', 'line 1: no text under the key "prompt", which is empty'),
        ('{"prompt": 3}\n', "line 1: no text under the key \"prompt\" but '3' (int)"),
        ('["a"]\n', "line 1: no JSON object"),
        ('{"prompt": "a", "text": 1, "text": 2}\n', 'line 1: the key "text" appears twice'),
        (
            '{"prompt": "a", "include": [{"class": "b", "class": "c"}]}\n',
            'line 1: the key "class" appears twice',
        ),
        ('{"prompt": "a", "negative_prompt": ["b"]}\n', 'line 1: no text under the key "negative_prompt"'),
        ('{"prompt": "\\ud83d"}\n', 'line 1: the text under the key "prompt" holds half a character'),
        (b'{"prompt": "a"}\n{"prompt": "\xe9"}\n', "line 2: byte 13 (0xe9) is not UTF-8"),
        ('{"prompt": "a", "n": ' + "9" * 5000 + "}\n", "line 1: JSON that cannot be read"),
        ("[" * 100_000 + "\n", "line 1: JSON that cannot be read"),
        ("\n\n", "is empty"),
    ],
)
def test_bad_file_is_refused_with_its_line(
    tmp_path: Path, read: Reader, content: str | bytes, said: str
) -> None:
    (tmp_path / "p.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match="p.jsonl") as error:
        read("p.jsonl")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_lines_of_text_are_listed(tmp_path: Path, read: Reader) -> None:
    (tmp_path / "p.txt").write_bytes(b"a cup\n\nb\xffat\n")
    with pytest.raises(
        DataError, match=r"p\.txt, line 3: byte 2 \(0xff\) is not UTF-8\. Expected one prompt"
    ):
        read("p.txt")
    (tmp_path / "p.txt").write_text('says "A"\nsays nothing\nsays ""\n')
    with pytest.raises(DataError, match=r"line 2: no text in double quotes, .*signs\.quoted_as.*; line 3: "):
        read("p.txt", quoted_as="text")


def test_many_bad_lines_are_counted_in_one_message(tmp_path: Path, read: Reader) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n' + "{}\n" * 2 + "3\n" + "{}\n" * 5)
    with pytest.raises(DataError) as error:
        read("p.jsonl")
    said = str(error.value)
    assert [f"line {n}:" in said for n in range(1, 6)] == [False, True, True, True, False]
    assert "line 4: no JSON object; and 5 more. Expected" in said


def test_missing_file_suggests_the_nearest_name(tmp_path: Path, read: Reader) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r"Did you mean .*train\.jsonl"):
        read("trian.jsonl")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        read("folder.txt")


def test_root_that_is_not_a_folder_is_refused_with_the_expected_files(tmp_path: Path) -> None:
    sources = {
        "a": SourceConfig(train="a/train.txt", test="a/test.txt"),
        "b": SourceConfig(hub="x", train="t", test="t"),
    }
    with pytest.raises(DataError, match=r"nowhere is not a folder\. .* holds a/train\.txt, a/test\.txt\."):
        load_prompts(DataConfig(root=str(tmp_path / "nowhere"), sources=sources), "train")


def test_held_out_takes_the_first_of_every_source() -> None:
    prompts = {name: [Prompt(f"{name}{i}") for i in range(5)] for name in "ab"}
    assert [prompt.text for prompt in held_out(prompts, 2)] == ["a0", "a1", "b0", "b1"]
