"""Isolated environments: a virtual environment for a plugin whose dependencies clash with those of this one.

${MARBLE_HOME:-~/.local/share/marble}/rewards/NAME/
    venv/               marble of this version, and the plugin's distribution with what it depends on
    environment.json    what it offers; written last, so that an installation that was cut short does not count
"""

import json
import os
import re
import subprocess
import venv
from dataclasses import asdict, dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from marble_cli import DISTRIBUTION, __version__
from marble_cli.errors import ConfigError, RequestError, RewardError
from marble_cli.paths import NO_HOME, expand, home
from marble_cli.plugins import installed

RECORD = "environment.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Environment:
    """An isolated environment in `folder`: its version of marble and the rewards that it offers."""

    folder: Path
    marble: str
    rewards: tuple[str, ...]

    def command(self, *arguments: str) -> list[str]:
        return _marble(_python(self.folder / "venv"), *arguments)


def root() -> Path:
    """The folder of all isolated environments.

    Raises:
        ConfigError: there is no home, and MARBLE_HOME names no other folder.
    """
    if named := os.environ.get("MARBLE_HOME"):
        return expand("MARBLE_HOME=", named) / "rewards"
    folder = None if NO_HOME in os.environ else home()
    if folder is None:
        raise ConfigError(
            "there is no home that could hold isolated environments: HOME is not set, and the password file does not name "
            "one. Name a folder for them: MARBLE_HOME=FOLDER."
        )
    return folder / ".local" / "share" / "marble" / "rewards"


def find(plugin: str) -> Environment:
    """The environment that offers the reward `plugin`, preferably the one of its name.

    Raises:
        ConfigError: there is none, or it holds another version of marble.
    """
    records = sorted(root().glob(f"*/{RECORD}"), key=lambda file: (file.parent.name != plugin, file))
    known = [_read(file) for file in records]
    for environment in known:
        if plugin in environment.rewards:
            if environment.marble != __version__:
                raise ConfigError(
                    f"{environment.folder} holds marble {environment.marble}, and this is {__version__}. Bring it up to "
                    f"date: marble rewards install {environment.folder.name}"
                )
            return environment
    offered = ", ".join(name for environment in known for name in environment.rewards) or "none"
    raise ConfigError(
        f"no isolated environment in {root()} offers the reward {plugin!r}. Make one: marble rewards install {plugin}. "
        f"Known: {offered}"
    )


def install(name: str, source: str | None) -> Environment:
    """Make the isolated environment `name`, or repair and upgrade it.

    Args:
        name: a reward, or a distribution of some.
        source: folder or pip requirement of the distribution; None takes the one that is installed here. What an
            index has under the name of a reward is another's, so it is fetched from there only when it is named.

    Raises:
        RequestError: a name or source cannot be meant.
        RewardError: pip fails, or what it installed offers no reward that can be imported.
    """
    if not NAME.fullmatch(name):
        raise RequestError(f"{name!r} is no name of a reward or distribution. Expected e.g. ocr.")
    wanted = _plugin(name, source)
    folder = root() / name
    (folder / RECORD).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    python = _ensure_venv(folder / "venv")
    own = _requirement(distribution(DISTRIBUTION), "[serve]")
    pip = [python, "-P", "-m", "pip", "install", "--upgrade", "--disable-pip-version-check", *own, *wanted]
    done = subprocess.run(pip, env=clean_environ(), stdout=2, check=False)
    if done.returncode:
        raise RewardError(
            f"pip could not install {' '.join(wanted)} into {folder} (exit code {done.returncode}); its messages stand "
            "above. Its own variables, such as PIP_INDEX_URL and PIP_CONSTRAINT, reach it."
        )
    environment = Environment(folder, *_offers(python, name, source))
    record = {**asdict(environment), "folder": str(folder)}
    temporary = folder / f"{RECORD}.new"
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / RECORD)
    return environment


def clean_environ() -> dict[str, str]:
    """This process's environment without what would lead another Python back to this one's packages."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {key: value for key, value in os.environ.items() if key not in ours}


def _read(record: Path) -> Environment:
    try:
        row = json.loads(record.read_text("utf-8"))
        return Environment(record.parent, row["marble"], tuple(row["rewards"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{record} cannot be read: {error}. Repair it: marble rewards install {record.parent.name}"
        ) from error


def _python(folder: Path) -> str:
    return str(folder / "bin" / "python")


def _marble(python: str, *arguments: str) -> list[str]:
    return [python, "-P", "-m", "marble_cli", *arguments]  # -P: nothing in the current folder is imported


def _ensure_venv(folder: Path) -> str:
    """Python of the virtual environment `folder`, made anew unless it runs and has pip."""
    python = _python(folder)
    works = Path(python).exists() and not subprocess.run(
        [python, "-P", "-m", "pip", "--version"], env=clean_environ(), capture_output=True, check=False
    ).returncode  # fmt: skip
    if not works:
        venv.create(folder, clear=True, symlinks=True, with_pip=True)
    return python


def _plugin(name: str, source: str | None) -> list[str]:
    """Arguments for pip that install the plugin's distribution."""
    if source is not None:
        folder = expand("--from ", source) if source.startswith("~") else Path(source)
        if os.path.exists(folder):
            return [str(folder.resolve())]
        if source.startswith(("-", ".", "/", "~")):
            raise RequestError(f"--from {source}: there is no such folder or file.")
        return [source]
    entry = installed().get(name)
    try:
        known = entry.dist if entry and entry.dist else distribution(name)
    except PackageNotFoundError:
        raise RequestError(
            f"no reward or distribution {name!r} is installed here. Say what to install: marble rewards install {name} "
            f"--from PATH|REQUIREMENT, e.g. --from plugins/marble-reward-{name}."
        ) from None
    if known.name == DISTRIBUTION:
        raise RequestError(f"{name} is one of marble's own rewards and needs no environment of its own.")
    return _requirement(known)


def _requirement(known: Distribution, extra: str = "") -> list[str]:
    """Arguments for pip that install a distribution as it is installed here (PEP 610)."""
    # A checkout on the path may hold an egg-info, which hides the installation and does not know where it is from.
    origins = [found.read_text("direct_url.json") for found in distributions(name=known.name)]
    direct: dict[str, Any] = json.loads(next(filter(None, origins), "{}"))
    url = direct.get("url", "")
    path = Path(url2pathname(urlsplit(url).path)) if url.startswith("file:") else None
    if path is not None and path.exists():
        editable = ["--editable"] if direct.get("dir_info", {}).get("editable") else []
        return [*editable, f"{path}{extra}"]
    if "vcs_info" in direct:
        return [f"{known.name}{extra} @ {direct['vcs_info']['vcs']}+{url}@{direct['vcs_info']['commit_id']}"]
    return [f"{known.name}{extra}=={known.version}"]


def _offers(python: str, name: str, source: str | None) -> tuple[str, tuple[str, ...]]:
    """Version of marble and names of the rewards in an environment, marble's own apart; each can be imported.

    Raises:
        RewardError: there is none, or one cannot be imported.
    """
    done = subprocess.run(
        _marble(python, "rewards", "list", "--json"), env=clean_environ(), stdout=subprocess.PIPE, text=True, check=False
    )  # fmt: skip
    if done.returncode:
        raise RewardError(
            f"marble does not start in {python} (exit code {done.returncode}); what it wrote stands above."
        )
    listed = json.loads(done.stdout)
    rows = [row for row in listed["rewards"] if row["distribution"] != DISTRIBUTION]
    for row in rows:
        if row["error"]:
            raise RewardError(f"in the new environment, {row['error']}")
    names = tuple(row["name"] for row in rows)
    wanted = name in installed() or (source is not None and name not in {row["distribution"] for row in rows})
    if not names or (wanted and name not in names):
        raise RewardError(
            f"what was installed offers {'the rewards ' + ', '.join(names) if names else 'no reward'}"
            f"{f', not {name!r}' if names else ''}. Name a distribution with the entry points `marble.rewards`: "
            f"marble rewards install {name} --from PATH|REQUIREMENT"
        )
    return listed["marble"], names
