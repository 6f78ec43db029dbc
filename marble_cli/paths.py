"""Paths as people write them: `~`, folders that are not there yet, names that no disk can hold; and the home."""

import logging
import os
import pwd
import unicodedata
from pathlib import Path

from marble_cli.errors import RequestError

log = logging.getLogger("marble")

LONGEST_NAME = 255  # bytes that a file system gives to a name, as Linux, macOS and NFS have it
LONGEST_PATH = 4096 - 160  # bytes that the system takes, less what a run appends
NO_HOME = "MARBLE_NO_HOME"  # variable: HOME is borrowed for this process and what it starts
UNPRINTABLE = (
    "Cc",
    "Cs",
    "Zl",
    "Zp",
)  # control characters, bytes that are not UTF-8, ends of lines and paragraphs


def home() -> Path | None:
    """The user's folder by HOME, else by the password file; None where neither says."""
    if named := os.environ.get("HOME"):
        return Path(named)
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return None


def settle_home(instead: Path) -> None:
    """Set HOME where nothing says what it is, for libraries and processes that look nowhere else.

    Args:
        instead: what to take for it where the password file does not say either; it is told in a line.
    """
    if os.environ.get("HOME"):
        return
    found = home()
    if found is None:
        os.environ[NO_HOME] = "1"
        log.warning(
            "there is no home: HOME is not set, and the password file does not name one. Taken for it: %s",
            instead,
        )
    os.environ["HOME"] = str(found or instead)


def expand(said: str, text: str, instead: Path | None = None) -> Path:
    """`text` as a path, with `~` and `~user` replaced.

    Args:
        said: what stands before it on the command line, for messages, e.g. `run.dir=`.
        text: the path as written.
        instead: what `~` stands for where there is no home.

    Raises:
        RequestError: there is no home, or no such user, or a name that no disk can hold.
    """
    _check_names(said, text)
    if not text.startswith("~"):
        return Path(text)
    user, _, rest = text[1:].partition("/")
    if user:
        found = os.path.expanduser(f"~{user}")
        if found.startswith("~"):
            raise RequestError(
                f"{said}{text}: there is no user {user!r}. Expected ~/ for your own folder; a folder whose name begins "
                f"with ~ is written ./{text}"
            )
        return Path(found) / rest
    folder = home() or instead
    if folder is None:
        raise RequestError(
            f"{said}{text}: there is no home: HOME is not set, and the password file does not name one. Set HOME, or write "
            "the path without ~."
        )
    return folder / rest


def absolute(said: str, text: str, instead: Path | None = None) -> Path:
    """As `expand`, from the root; `..` stays, for what lies before it may be a link."""
    path = expand(said, text, instead)
    try:
        return path.absolute()
    except OSError as error:
        raise RequestError(
            f"{said}{text}: the folder that marble was started in is gone ({error})."
        ) from error


def _check_names(said: str, text: str) -> None:
    """Raises RequestError if the text can be no path, or none that a run could write."""
    for letter in text:
        if unicodedata.category(letter) in UNPRINTABLE:
            raise RequestError(
                f"{said}{text!r}: holds the character U+{ord(letter):04X}. Expected a path without line ends and other "
                "control characters, in UTF-8."
            )
    for name in text.split("/"):
        if (size := len(os.fsencode(name))) > LONGEST_NAME:
            raise RequestError(
                f"{said}{text[:20]}...: the name {name[:20]}... has {size} bytes, and a folder's or file's name at most "
                f"{LONGEST_NAME}. Choose a shorter one."
            )
    if (size := len(os.fsencode(text))) > LONGEST_PATH:
        raise RequestError(
            f"{said}{text[:20]}...: it has {size} bytes. Expected a path of at most {LONGEST_PATH}."
        )
