"""Expand `~` in paths, check their names, and find the home folder."""

import logging
import os
import pwd
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from marble_cli.errors import RequestError

log = logging.getLogger("marble")

LONGEST_NAME = 255  # bytes, the limit of Linux, macOS and NFS
LONGEST_PATH = 4096 - 160  # bytes; the difference is reserved for the names that a run appends
NO_HOME = "MARBLE_NO_HOME"  # environment variable: HOME is a stand-in, for this process and its children
# Unicode categories: control characters, bytes that are not UTF-8, line and paragraph separators.
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")


def home() -> Path | None:
    """Return the user's home by HOME or the password file; None if neither names one."""
    if named := os.environ.get("HOME"):
        return Path(named)
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return None


def ensure_home(fallback: Path) -> None:
    """Set HOME if it is unset, for libraries and child processes that read only HOME.

    Args:
        fallback: the folder to use if the password file names no home either; a warning reports this.
    """
    if os.environ.get("HOME"):
        return
    found = home()
    if found is None:
        os.environ[NO_HOME] = "1"
        log.warning(
            "there is no home: HOME is not set, and the password file does not name one. Using %s",
            fallback,
        )
    os.environ["HOME"] = str(found or fallback)


def expand(option: str, text: str, fallback: Path | None = None) -> Path:
    """Return `text` as a path with `~` and `~user` replaced.

    Args:
        option: the text before the path on the command line, for messages, e.g. `run.dir=`.
        text: the path as written.
        fallback: the replacement of `~` if there is no home.

    Raises:
        RequestError: there is no home or no such user, or a name is too long or has control characters.
    """
    _check_names(option, text)
    if not text.startswith("~"):
        return Path(text)
    user, _, rest = text[1:].partition("/")
    if user:
        found = os.path.expanduser(f"~{user}")
        if found.startswith("~"):
            raise RequestError(
                f"{option}{text}: there is no user {user!r}. Expected ~/ for your own folder; write a folder "
                f"whose name begins with ~ as ./{text}"
            )
        return Path(found) / rest
    folder = home() or fallback
    if folder is None:
        raise RequestError(
            f"{option}{text}: there is no home: HOME is not set, and the password file does not name one. "
            "Set HOME, or write the path without ~."
        )
    return folder / rest


def absolute(option: str, text: str, fallback: Path | None = None) -> Path:
    """Expand `text` as `expand` does and make it absolute.

    `..` is not resolved, because the folder before it may be a link.
    """
    path = expand(option, text, fallback)
    try:
        return path.absolute()
    except OSError as error:
        raise RequestError(
            f"{option}{text}: the folder that marble was started in no longer exists ({error})."
        ) from error


def _check_names(option: str, text: str) -> None:
    """Refuse a text that cannot be a path, or not one that a run could write.

    Raises:
        RequestError: the path or a name in it is too long, or has control characters.
    """
    for letter in text:
        if unicodedata.category(letter) in UNPRINTABLE:
            raise RequestError(
                f"{option}{text!r}: holds the character U+{ord(letter):04X}. Expected a path without line "
                "ends and other control characters, in UTF-8."
            )
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{option}{text!a}: this locale has no such letters in the names of files "
            f"({error.encoding}). Set LC_ALL=C.UTF-8."
        ) from error
    for name in text.split("/"):
        if (size := len(os.fsencode(name))) > LONGEST_NAME:
            raise RequestError(
                f"{option}{text[:20]}...: the name {name[:20]}... has {size} bytes, and a folder's or file's "
                f"name at most {LONGEST_NAME}. Choose a shorter name."
            )
    if (size := len(os.fsencode(text))) > LONGEST_PATH:
        raise RequestError(
            f"{option}{text[:20]}...: it has {size} bytes. Expected a path of at most {LONGEST_PATH}."
        )


def labels(folders: Sequence[Path]) -> list[str]:
    """Name each folder by as many of the last parts of its path as tell different folders apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts), default=1)):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return [str(folder.resolve()) for folder in folders]
