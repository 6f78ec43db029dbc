"""Byte-order marks, control and invisible characters in prompt files are removed or refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from marble_cli.data.prompts import Prompt
from marble_cli.errors import DataError

Reader = Callable[..., list[Prompt]]

CONTROLS = [
    "\x00",
    "\x01",
    "\x07",
    "\x08",
    "\x0b",
    "\x0c",
    "\x1b",
    "\x1c",
    "\x1f",
    "\x7f",
    "\x85",
    "\x9f",
    "\r",
    "\ufffe",
    "\uffff",
]
BLANK = [
    "\ufeff",
    "\u200b",
    "\u200c",
    "\u200d",
    "\u2060",
    "\u00ad",
    "\u180e",
    "\u200e\u200f",
    "\u202a\u202c",
    "\u2066\u2069",
    " \u200b\t\u200b ",
    "\u2028",
    "\u2029",
    "\u3000",
    "\u00a0",
    "\x0c",
    "\x85",
    "\r",
    "\ufe0f",
    "\u0301",
    "\ufeff\ufeff",
    "\u115f",
    "\u1160",
    "\u2800",
    "\u3164",
    "\uffa0",
]
ENDINGS = [".txt", ".jsonl", ".parquet"]


def write(folder: Path, ending: str, texts: list[str], key: str = "prompt") -> str:
    """A prompt file with one row a text."""
    file = folder / f"p{ending}"
    if ending == ".txt":
        file.write_bytes("".join(f"{text}\n" for text in texts).encode())
    elif ending == ".jsonl":
        file.write_text("".join(json.dumps({"prompt": "a cup", key: text}) + "\n" for text in texts))
    else:
        rows = [{"prompt": "a cup", key: text} for text in texts]
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.name


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("control", CONTROLS)
def test_control_characters_are_refused_with_file_and_line(
    tmp_path: Path, read: Reader, ending: str, control: str
) -> None:
    with pytest.raises(
        DataError, match=rf"p\{ending}, (line|row) 2: .*U\+{ord(control):04X}\) at character 6"
    ) as error:
        read(write(tmp_path, ending, ["a cup", f"a cup{control} of tea"]))
    assert control not in str(error.value)


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_control_characters_in_metadata_are_refused(tmp_path: Path, read: Reader, ending: str) -> None:
    with pytest.raises(
        DataError, match=r'row 1|line 1: the text under the key "text" holds a control character'
    ):
        read(write(tmp_path, ending, ["4\x007"], "text"))
    (tmp_path / "q.jsonl").write_text(
        '{"prompt": "a", "include": [{"class": "c\\u0000"}], "text": "1\\n 2\\t3 "}\n'
    )
    with pytest.raises(DataError, match='under the key "include" holds a control character'):
        read("q.jsonl")


@pytest.mark.parametrize("blank", BLANK)
def test_line_without_a_letter_is_blank(tmp_path: Path, read: Reader, blank: str) -> None:
    assert [p.text for p in read(write(tmp_path, ".txt", ["a", blank, "b"]))] == ["a", "b"]
    for ending in (".jsonl", ".parquet"):
        with pytest.raises(DataError, match='no text under the key "prompt"'):
            read(write(tmp_path, ending, [blank]))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("\ufeffa cup", "a cup"),
        ("a \ufeffcup", "a cup"),
        ("a cup\u200b", "a cup"),
        ("\u200b a cup \u2060", "a cup"),
        ("\u200d\u200ca cup\u00ad", "a cup"),
        ("a cup\x0c", "a cup"),
        ("\x0ca cup", "a cup"),
        ("a cup\x85", "a cup"),
        ("a\tcup", "a\tcup"),
        ("a b\u00f6at\u2028b", "a b\u00f6at\u2028b"),
        ("an \U0001f469\u200d\U0001f680", "an \U0001f469\u200d\U0001f680"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647"),
        ("flag \U0001f3f4\U000e0067\U000e0062\U000e007f", "flag \U0001f3f4\U000e0067\U000e0062\U000e007f"),
        ("heart \u2764\ufe0f", "heart \u2764\ufe0f"),
        ("e\u0301", "e\u0301"),
    ],
)
def test_marks_are_dropped_and_meaningful_characters_stay(
    tmp_path: Path, read: Reader, ending: str, written: str, text: str
) -> None:
    assert [p.text for p in read(write(tmp_path, ending, [written]))] == [text]


def test_prompt_of_several_lines_in_one_row_stays_whole(tmp_path: Path, read: Reader) -> None:
    for ending in (".jsonl", ".parquet"):
        assert [p.text for p in read(write(tmp_path, ending, ["a\nb", "a\r\nb"]))] == ["a\nb", "a\r\nb"]
        (row,) = read(write(tmp_path, ending, [" 1\n 2\t\ufeff3 "], "text"))
        assert row.metadata == {"text": " 1\n 2\t3 "}


LINES = 'a cup\n\n  a böat "47"\n'


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("order", ["", "-le", "-be"])
def test_file_with_a_byte_order_mark_is_read_in_its_encoding(
    tmp_path: Path, read: Reader, encoding: str, order: str
) -> None:
    if encoding == "utf-8-sig" and order:
        return
    mark = "\ufeff" if order else ""
    (tmp_path / "p.txt").write_bytes((mark + LINES.replace("\n", "\r\n")).encode(encoding + order))
    assert [p.text for p in read("p.txt")] == ["a cup", 'a böat "47"']
    (tmp_path / "p.jsonl").write_bytes((mark + '{"prompt": "a", "text": "ü"}\n').encode(encoding + order))
    assert read("p.jsonl") == [Prompt("a", {"text": "ü"}, "signs")]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("ending", [".txt", ".jsonl"])
def test_utf_16_file_without_a_mark_is_refused_with_the_remedy(
    tmp_path: Path, read: Reader, encoding: str, ending: str
) -> None:
    text = LINES if ending == ".txt" else '{"prompt": "a cup"}\n'
    (tmp_path / f"p{ending}").write_bytes(text.encode(encoding))
    with pytest.raises(
        DataError, match=rf"(?i)p\{ending} seems to be .*iconv -f {encoding.replace('-', '.?')} -t UTF-8"
    ):
        read(f"p{ending}")


@pytest.mark.parametrize("content", [b"\xff\xfea", b"\xfe\xff\xd8\x00\x00a", b"\xff\xfe\x00\x00a"])
def test_damaged_file_with_a_mark_is_refused(tmp_path: Path, read: Reader, content: bytes) -> None:
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"p\.txt begins with the mark of UTF-(16|32) and is damaged"):
        read("p.txt")


def test_joined_files_lose_their_inner_marks(tmp_path: Path, read: Reader) -> None:
    (tmp_path / "p.txt").write_bytes("\ufeffa\n\ufeffb\n\ufeff\n".encode())
    assert [p.text for p in read("p.txt")] == ["a", "b"]
    (tmp_path / "p.jsonl").write_bytes(
        '\ufeff{"prompt": "a"}\n\ufeff{"prompt": "\ufeffb"}\n\ufeff\n'.encode()
    )
    assert [p.text for p in read("p.jsonl")] == ["a", "b"]


def test_joined_files_of_two_byte_orders_or_two_headings_are_refused(tmp_path: Path, read: Reader) -> None:
    (tmp_path / "p.txt").write_bytes("\ufeffa\n".encode("utf-16-le") + "\ufeffb\n".encode("utf-16-be"))
    with pytest.raises(DataError, match=r"line 2: .*U\+FFFE"):
        read("p.txt")
    (tmp_path / "p.csv").write_text("\ufeffprompt,text\na,x\n\ufeffprompt,text\nb,y\n", "utf-8")
    with pytest.raises(DataError, match="row 2: the headings again"):
        read("p.csv")


def test_names_of_columns_and_keys_lose_marks_and_white_space(tmp_path: Path, read: Reader) -> None:
    (tmp_path / "p.csv").write_text("\u200bprompt, text\na,x\n", "utf-8")
    (tmp_path / "p.jsonl").write_text('{"\ufeffprompt": "a", " text\u200b": "x"}\n', "utf-8")
    for name in ("p.csv", "p.jsonl"):
        assert read(name) == [Prompt("a", {"text": "x"}, "signs")]
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "text": "x", " text": "y"}\n', "utf-8")
    with pytest.raises(DataError, match='the key "text" appears twice'):
        read("p.jsonl")


def test_lone_carriage_return_within_a_line_is_refused(tmp_path: Path, read: Reader) -> None:
    (tmp_path / "p.txt").write_bytes(b"a cup\ra boat\ra tree\r")
    with pytest.raises(
        DataError, match=r"line 1: it holds a lone carriage return \(U\+000D\) at character 6"
    ):
        read("p.txt")
    (tmp_path / "p.txt").write_bytes(b"a cup\r\r\na boat\r\n")
    assert [p.text for p in read("p.txt")] == ["a cup", "a boat"]
