"""Copy what a run recorded without anything that names the machine or its user.

Left out or shortened are secrets, absolute paths, hosts, the names of machine and user, accounts of services
and clusters, and the texts of warnings. Prompts, pictures and metrics stay as they are.
"""

import getpass
import json
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from marble_cli.config.enums import WandbMode
from marble_cli.config.references import without_secrets
from marble_cli.config.schema import LauncherConfig, LoggingConfig, RunConfig, WandbConfig
from marble_cli.files import write_whole
from marble_cli.redaction import redact
from marble_cli.report.journal import LINE, RETRY, START

HIDDEN = "…"
SHORTEST = 2  # letters of a name that is searched for
ADDRESS = re.compile(r"(\b[a-zA-Z][\w+.-]*://)[^\s/'\"]*")
PATH = re.compile(r"(?<![\w.…/~-])(?:~[\w.-]*)?(?:/[^\s/'\"<>|,;:()\[\]{}]+)*/([^\s/'\"<>|,;:()\[\]{}]+)/?")


def _names() -> re.Pattern[str]:
    """Return the pattern of the names of this machine and of its user, as whole words."""
    host = socket.gethostname()
    names = {host, host.split(".")[0], Path.home().name}
    with suppress(OSError, KeyError, ImportError):  # no such user
        names.add(getpass.getuser())
    words = sorted((re.escape(name) for name in names if len(name) >= SHORTEST), key=len, reverse=True)
    return re.compile(rf"(?<![\w-])(?:{'|'.join(words)})(?![\w-])" if words else r"(?!)", re.IGNORECASE)


def placeless(text: str) -> str:
    """Replace secrets and hosts in a text, and shorten absolute paths to their last part."""
    text = redact(text)
    if text.startswith(("/", "~")) and "\n" not in text:
        return f"{HIDDEN}/{Path(text).name}"  # whole, because it may hold spaces
    text = ADDRESS.sub(rf"\1{HIDDEN}", text.replace("file://", ""))
    return PATH.sub(rf"{HIDDEN}/\1", text)


def nameless(text: str) -> str:
    """Replace, besides what `placeless` does, the names of this machine and of its user."""
    return _names().sub(HIDDEN, placeless(text))


def anonymous_config(config: RunConfig) -> dict[str, Any]:
    """Return a run's configuration as a plain tree that can be shown to anybody.

    Names are replaced only where a user writes text; elsewhere a user called `euler` would change a choice.
    """
    shown = replace(
        config,
        run=replace(config.run, name=nameless(config.run.name), dir=f"runs/{nameless(config.run.name)}"),
        model=replace(config.model, embedding_cache=None),
        logging=LoggingConfig([], WandbConfig(WandbMode.disabled, None, None), config.logging.images_every),
        launcher=LauncherConfig(nproc=1),
    )
    tree: Any = _mapped(without_secrets(shown), placeless)
    tree["data"] = _mapped(tree["data"], nameless)
    for reward in (*tree["rewards"].values(), *tree["eval_rewards"].values()):
        reward["options"] = _mapped(reward["options"], nameless)
    return dict(tree)


def _mapped(tree: Any, change: Callable[[str], str]) -> Any:
    """Apply a function to every string value in nested mappings and lists."""
    if isinstance(tree, str):
        return change(tree)
    if isinstance(tree, dict):
        return {key: _mapped(value, change) for key, value in tree.items()}
    return [_mapped(value, change) for value in tree] if isinstance(tree, list) else tree


def copy_run(run: Path, config: dict[str, Any], folder: Path) -> Path:
    """Write what a report reads of `run` into `folder`, without what names machine and user; return the copy.

    Args:
        run: the run's folder.
        config: its configuration, as `anonymous_config` returns it.
        folder: where the copy is written, below a folder of the run's name.
    """
    copy = folder / nameless(run.resolve().name)
    copy.mkdir(parents=True)
    write_whole(copy / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    for name in ("metrics.jsonl", "samples"):
        if (run / name).exists():
            (copy / name).symlink_to((run / name).resolve())
    if (run / "log.txt").is_file():
        lines = (run / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        write_whole(copy / "log.txt", "".join(f"{kept}\n" for line in lines if (kept := _log_line(line))))
    with suppress(OSError, ValueError):  # the report says of the missing table that there is none
        tree = json.loads((run / "report.json").read_text(encoding="utf-8"))
        write_whole(copy / "report.json", json.dumps(_labels_changed(tree)))
    return copy


def _log_line(line: str) -> str | None:
    """Return a line of log.txt with the text of starts and retries alone; None for other information."""
    found = LINE.match(line)
    if found is None:
        return None
    time, level, text = found.groups()
    known = START.match(text) or RETRY.match(text)
    if known is None and level == "INFO":
        return None
    return f"{time},000 {level} {known[0] if known else 'a message whose text is not published'}"


def _labels_changed(tree: Any) -> Any:
    """Change the targets' labels in the report of `marble eval`; a label may be the path of a LoRA."""
    if isinstance(tree, dict):
        return {
            key: nameless(str(value)) if key in ("target", "against") and value else _labels_changed(value)
            for key, value in tree.items()
        }
    return [_labels_changed(value) for value in tree] if isinstance(tree, list) else tree
