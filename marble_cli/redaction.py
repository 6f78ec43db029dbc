"""Replace secrets by `***` in everything that leaves the process: keys, tokens and passwords.

A text is searched for the values that were learned and for patterns of secrets (`Bearer ...`, a password in a
URL, `api_key=...`). The patterns also catch secrets that an exception of a library quotes.
"""

import io
import json
import logging
import netrc
import os
import re
import sys
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote, unquote, urlsplit

HIDDEN = "***"
SHORTEST = 4  # letters; shorter secrets are not searched for, because they are ordinary words
# Letters from which on a secret is found inside words, and the name of a variable can mark its value as
# secret.
LONG = 8
NO_SECRET = "bos|eos|pad|unk|sep|cls|mask|stop|start|end|image|special|begin|next"  # a tokenizer's ..._token
NOT_AFTER = "".join(f"(?<!{word}_)" for word in NO_SECRET.split("|"))
NAME = rf"""(?:\w+[_-])?
    (?: api[_-]?key | (?:access|secret|private|auth|encryption|signing)[_-]?key | secret | credentials?
      | pass(?:word|wd|phrase)? | (?:proxy[_-])?authorization | {NOT_AFTER}token )"""
KEY = re.compile(NAME, re.VERBOSE | re.IGNORECASE)
UNREAD = re.compile(
    rf"""(?<![\w-]) {NAME} ['"]? \s* [:=] (?P<value>.*)""", re.VERBOSE | re.IGNORECASE | re.DOTALL
)
VARIABLE = re.compile(r"(.*_)?(API_?KEY|KEY|TOKEN|SECRET|PASS(WORD|WD|PHRASE)?|PWD)", re.IGNORECASE)
SHAPES = [
    re.compile(pattern, re.VERBOSE)
    for pattern in (
        r"""(?P<before> [Ii]llegal\ header\ value\ ) b?'[^']*'""",
        r"""(?P<before> [Ii]llegal\ header\ value\ ) b?"[^"]*\"""",
        r"""(?P<before> (?i:authorization)['"]?\s*[:=]\s*b?['"]?) [^\s'"\\][^\r\n'"\\]*""",
        r"""(?P<before> \b(?: Bearer\s+(?!token\b|auth) | bearer\s+(?=\S*\d) )) [^\s'",;)\\]+""",
        r"""(?P<before> \b[a-zA-Z][a-zA-Z0-9+.-]{0,20}://) [^\s/?\#@'"\\]+ (?=@)""",
        r"""(?P<before> [?&](?:[\w-]*(?i:key|token|secret|password|signature|credential)|sig)=)
            [^&\s'"\#\\]+""",
        rf"""(?P<before> (?<![\w-]) (?: (?i:{NAME}) | [A-Z0-9_]+_KEY ) =['"]?) [^\s'",}}&\\]+""",
        rf"""(?P<before> ['"] (?i:{NAME}) ['"] \s*:\s* b?['"]) [^'"\\]+""",
        r"""(?P<before>) \b
            (?: sk-[\w-]{16,} | hf_[A-Za-z0-9]{20,} | gh[pousr]_\w{20,} | AKIA[0-9A-Z]{16} )""",
    )
]

_learned: dict[str, None] = {}
_values: re.Pattern[str] | None = None


def learn(secret: str | None) -> None:
    """Add a secret value to those that `redact` replaces, in every form in which messages may quote it."""
    global _values
    if not secret:
        return
    forms = {secret, secret.strip(), *(line.strip() for line in secret.splitlines())}
    if header := re.fullmatch(r"(?i:bearer|basic|token)\s+(\S+)", secret):
        forms.add(header[1])
    for form in (secret, secret.strip()):
        raw = form.encode("utf-8", "surrogateescape")
        forms |= {
            repr(form)[1:-1],
            repr(f'{form}"')[1:-2],  # beside double quotes, apostrophes are escaped
            ascii(form)[1:-1],
            repr(raw)[2:-1],
            json.dumps(form)[1:-1],
            quote(raw, ""),
        }
    _learned.update(dict.fromkeys(form for form in forms if len(form) >= SHORTEST))
    longest_first = sorted(_learned, key=len, reverse=True)
    _values = re.compile("|".join(map(_pattern, longest_first))) if _learned else None


def _pattern(secret: str) -> str:
    """Return the pattern of a learned value; a short value, such as "test", must be a whole word."""
    return re.escape(secret) if len(secret) >= LONG else rf"(?<!\w){re.escape(secret)}(?!\w)"


def learn_environment() -> None:
    """Learn the secrets of the environment, the Hugging Face hub's login and netrc."""
    for name, value in os.environ.items():
        if VARIABLE.fullmatch(name) and len(value) >= LONG and not value.startswith(("/", "~", ".")):
            learn(value)
        elif "://" in value:
            learn_url(value)
    absent = (OSError, ValueError, RuntimeError, netrc.NetrcParseError)  # no login, or no home folder
    with suppress(*absent):
        learn(_hub_token().read_text("utf-8").strip())
    with suppress(*absent):
        for _, _, password in netrc.netrc().hosts.values():
            learn(password)


def _hub_token() -> Path:
    """Return the path where the Hugging Face hub's client keeps its token."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"
    )
    return Path(os.environ.get("HF_TOKEN_PATH") or os.path.join(home, "token")).expanduser()


def learn_url(url: str) -> None:
    """Learn the password in a URL, if any, and the HTTP header that contains it."""
    try:
        parts = urlsplit(url)
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
    except ValueError:
        return
    if password:
        learn(parts.password)
        learn(password)
        learn(b64encode(f"{user}:{password}".encode()).decode())


def learn_options(options: Mapping[str, Any]) -> None:
    """Learn the secrets in a reward's options: `api_key` and the like, and variables named by `..._env`."""
    for path, value in _texts(options):
        if path[-1].endswith("_env"):
            learn(os.environ.get(value))
        elif any(map(KEY.fullmatch, path)):
            learn(value)
        elif "://" in value:
            learn_url(value)


def _texts(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield every string and number in nested mappings and lists as text, with its path of keys."""
    if isinstance(tree, str | int | float) and not isinstance(tree, bool):
        yield path, str(tree)
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _texts(value, (*path, str(key)))
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from _texts(value, (*path, str(index)))


def learn_unread(word: str) -> None:
    """Learn all that follows the name of a secret in a word of the command line that cannot be read."""
    if found := UNREAD.search(word):
        for part in (found["value"], *re.split(r"""['"\\]+""", found["value"])):  # messages escape these
            learn(part)


def is_secret(key: str, value: Any, *, below: bool = False) -> bool:
    """Tell whether the value of a configuration key is or contains a secret.

    A number is one only `below` the name of a secret, and as `learn` has it: short ones are ordinary.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return below and len(str(value)) >= SHORTEST
    if not isinstance(value, str) or value == "":
        return False
    return below or bool(KEY.fullmatch(key)) or redact(value) != value


def redact(text: str) -> str:
    """Replace every secret in `text` by `***`."""
    if _values is not None:
        text = _values.sub(HIDDEN, text)
    for shape in SHAPES:
        text = shape.sub(rf"\g<before>{HIDDEN}", text)
    return text


class RedactingFilter(logging.Filter):
    """Redact the message of a log record before a handler formats, wraps or colours it."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), None
        return True


class RedactedStream(io.TextIOWrapper):
    """A text stream on the buffer of another stream that redacts everything written to it."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(
            stream.buffer, stream.encoding, stream.errors, line_buffering=True, write_through=True
        )

    def write(self, text: str) -> int:
        super().write(redact(text))
        return len(text)

    def close(self) -> None:
        """Flush, and leave the buffer open: it belongs to the replaced stream."""
        self.flush()


def redact_output() -> None:
    """Redact standard output and standard error: prints, warnings and tracebacks of any code."""
    learn_environment()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and not isinstance(stream, RedactedStream):
            stream.flush()
            setattr(sys, name, RedactedStream(stream))
