"""Create a plugin distribution from the templates in assets/plugin."""

import keyword
import re
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from marble_cli.errors import RequestError
from marble_cli.files import check_writable
from marble_cli.plugins import installed
from marble_cli.rewards.registry import origin

NAME = re.compile(r"[a-z](?:[a-z0-9_]{0,48}[a-z0-9])?")
SUFFIX = ".template"


def write_plugin(name: str, output: Path | None) -> Path:
    """Write the plugin distribution of a reward.

    Args:
        name: of the reward, e.g. sharpness.
        output: folder to write, which must be new or empty; None is marble-reward-NAME.

    Returns:
        The folder.

    Raises:
        RequestError: the name is invalid or taken, or the folder is not empty.
    """
    class_name = "".join(part.capitalize() for part in name.split("_"))
    reserved = keyword.iskeyword(name) or keyword.iskeyword(class_name)
    if not NAME.fullmatch(name) or reserved:
        why = ", as it is a word of Python" if reserved else ""
        raise RequestError(
            f"{name!r} cannot be a reward's name{why}. Expected a lower-case letter, then lower-case "
            "letters and digits, also underscores between them, 50 characters at most, e.g. sharpness."
        )
    if name in installed():
        raise RequestError(f"there is a reward {name!r} already, of {origin(name)}. Choose another name.")
    distribution = f"marble-reward-{name.replace('_', '-')}"
    folder = output or Path(distribution)
    check_writable(folder, "--output ")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(
            f"{folder} exists and is not overwritten. Choose another folder with --output DIR."
        )
    package = f"marble_reward_{name}"
    values = {"name": name, "distribution": distribution, "package": package, "class": class_name}
    for path, template in _templates(files("marble_cli") / "assets" / "plugin"):
        target = folder / path.replace("package", package, 1).removesuffix(SUFFIX)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(Template(template.read_text("utf-8")).substitute(values), encoding="utf-8")
    return folder


def _templates(folder: Traversable, below: str = "") -> Iterator[tuple[str, Traversable]]:
    """Yield every template with its path relative to the top folder."""
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.is_dir():
            yield from _templates(entry, f"{below}{entry.name}/")
        elif entry.name.endswith(SUFFIX):
            yield f"{below}{entry.name}", entry
