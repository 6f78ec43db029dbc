"""Standard output and error print any text in any encoding."""

import io
import subprocess
import sys

import pytest
from rich.console import Console
from rich.table import Table

from marble_cli.cli.encoding import take_every_text


@pytest.mark.parametrize(
    ("encoding", "text", "shown"),
    [
        ("ascii", "0 … 1, −2 ± 3 × ∞", "0 ... 1, -2 +- 3 x inf"),
        ("ascii", "größe", "gr\\xf6\\xdfe"),
        ("ascii", "模 🙂 \udcff", "\\u6a21 \\U0001f642 \\udcff"),
        ("latin-1", "größe … 模", "größe ... \\u6a21"),
        ("cp1252", "größe … “a”", "größe … “a”"),
        ("cp437", "größe ∞ ’", "größe ∞ '"),
        ("utf-8", "größe … 模", "größe … 模"),
    ],
)
def test_every_text_can_be_printed(
    monkeypatch: pytest.MonkeyPatch, encoding: str, text: str, shown: str
) -> None:
    for name in ("stdout", "stderr"):
        written = io.BytesIO()
        monkeypatch.setattr(sys, name, io.TextIOWrapper(written, encoding=encoding))
        take_every_text()
        print(text, file=getattr(sys, name), flush=True)
        assert written.getvalue().decode(encoding) == f"{shown}\n"


def test_tables_can_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    take_every_text()
    table = Table("größe", "range")
    table.add_row("模" * 50, "-∞ … ∞")
    Console(width=40).print(table)
    sys.stdout.flush()
    assert "-inf ... inf" in written.getvalue().decode("ascii")


def test_a_stream_without_encoding_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    take_every_text()
    print("größe")


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["train", "run.nmae=größe"]])
def test_the_command_speaks_ascii(arguments: list[str]) -> None:
    """`marble --help` draws boxes; a message quotes what was asked."""
    done = subprocess.run(
        [sys.executable, "-m", "marble_cli", *arguments],
        capture_output=True,
        check=False,
        env={
            "PYTHONIOENCODING": "ascii",
            "LC_ALL": "C",
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
            "PATH": "",
        },
    )
    assert done.returncode == (0 if "--help" in arguments else 2), done.stderr
    assert (done.stdout + done.stderr).isascii()
    assert b"UnicodeEncodeError" not in done.stderr
