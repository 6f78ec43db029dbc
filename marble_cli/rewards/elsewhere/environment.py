"""Install plugins whose dependencies clash with this environment into virtual environments of their own.

${MARBLE_HOME:-~/.local/share/marble}/rewards/NAME/
    venv/               marble of this version, and the plugin's distribution with its dependencies
    environment.json    the rewards that it offers; written last, so that an interrupted installation
                        does not count
"""

import json
import os
import re
import shutil
import subprocess
import venv
from contextlib import ExitStack
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
    """An isolated environment in `folder`, with its version of marble and the rewards that it offers."""

    folder: Path
    marble: str
    rewards: tuple[str, ...]

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of its own `marble` with these arguments."""
        return _marble(_python(self.folder / "venv"), *arguments)


def root() -> Path:
    """Return the folder of all isolated environments.

    Raises:
        ConfigError: there is no home folder, and MARBLE_HOME is not set.
    """
    if named := os.environ.get("MARBLE_HOME"):
        return expand("MARBLE_HOME=", named) / "rewards"
    folder = None if NO_HOME in os.environ else home()
    if folder is None:
        raise ConfigError(
            "there is no home that could hold isolated environments: HOME is not set, and the password file "
            "does not name one. Name a folder for them: MARBLE_HOME=FOLDER."
        )
    return folder / ".local" / "share" / "marble" / "rewards"


def find(plugin: str) -> Environment:
    """Find the environment that offers the reward `plugin`, preferably the one with its name.

    Raises:
        ConfigError: there is none, or it has another version of marble.
    """
    records = sorted(root().glob(f"*/{RECORD}"), key=lambda file: (file.parent.name != plugin, file))
    known = [_read_record(file) for file in records]
    for environment in known:
        if plugin in environment.rewards:
            if environment.marble != __version__:
                raise ConfigError(
                    f"{environment.folder} holds marble {environment.marble}, and this is {__version__}. "
                    f"Bring it up to date: marble rewards install {environment.folder.name}"
                )
            return environment
    offered = ", ".join(name for environment in known for name in environment.rewards) or "none"
    raise ConfigError(
        f"no isolated environment in {root()} offers the reward {plugin!r}. "
        f"Make one: marble rewards install {plugin}. Known: {offered}"
    )


def install(name: str, source: str | None) -> Environment:
    """Create the isolated environment `name`, of which nothing stays if that fails, or repair and upgrade it.

    Args:
        name: a reward, or a distribution of rewards.
        source: folder or pip requirement of the distribution; None takes the one that is installed in this
            environment. A package index may have a stranger's project under the name of a reward, so nothing
            is fetched from an index unless `source` names it.

    Raises:
        RequestError: the name or source is invalid, no such distribution is installed, or it was from a
            folder or file that is gone.
        RewardError: pip fails, or the distribution offers no reward that can be imported.
    """
    if not NAME.fullmatch(name):
        raise RequestError(f"{name!r} is no name of a reward or distribution. Expected e.g. ocr.")
    plugin_arguments = _plugin_arguments(name, source)
    marble_arguments = _same_distribution(distribution(DISTRIBUTION), "[serve]")
    folder = root() / name
    (folder / RECORD).unlink(missing_ok=True)
    with ExitStack() as begun:
        if not folder.exists():
            begun.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        python = _ensure_venv(folder / "venv")
        pip = [python, "-P", "-m", "pip", "install", "--upgrade", "--disable-pip-version-check"]
        command = [*pip, *marble_arguments, *plugin_arguments]
        # pip writes to standard error: standard output is for the command's answer.
        done = subprocess.run(command, env=clean_environ(), stdout=2, check=False)
        if done.returncode:
            raise RewardError(
                f"pip could not install {' '.join(plugin_arguments)} into {folder} "
                f"(exit code {done.returncode}); see its messages above. "
                "pip follows its variables, such as PIP_INDEX_URL and PIP_CONSTRAINT."
            )
        environment = Environment(folder, *_check_offer(python, name, source))
        begun.pop_all()
    record = {**asdict(environment), "folder": str(folder)}
    temporary = folder / f"{RECORD}.new"
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / RECORD)
    return environment


def clean_environ() -> dict[str, str]:
    """Return the environment variables without those that point another Python to this one's packages."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {key: value for key, value in os.environ.items() if key not in ours}


def _read_record(record: Path) -> Environment:
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
    return [python, "-P", "-m", "marble_cli", *arguments]  # -P: no import from the current folder


def _ensure_venv(folder: Path) -> str:
    """Return the Python of the virtual environment `folder`, which is created unless it works and has pip."""
    python = _python(folder)
    command = [python, "-P", "-m", "pip", "--version"]
    exists = Path(python).exists()
    if (
        not exists
        or subprocess.run(command, env=clean_environ(), capture_output=True, check=False).returncode
    ):
        venv.create(folder, clear=True, symlinks=True, with_pip=True)
    return python


def _plugin_arguments(name: str, source: str | None) -> list[str]:
    """Return pip's arguments for the plugin's distribution."""
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
            f"no reward or distribution {name!r} is installed here. Say what to install: "
            f"marble rewards install {name} --from PATH|REQUIREMENT, "
            f"e.g. --from plugins/marble-reward-{name}."
        ) from None
    if known.name == DISTRIBUTION:
        raise RequestError(f"{name} is one of marble's own rewards and needs no environment of its own.")
    return _same_distribution(known)


def _same_distribution(known: Distribution, extra: str = "") -> list[str]:
    """Return pip's arguments for a distribution from the origin of the one installed here (PEP 610).

    Raises:
        RequestError: that was a folder or file, and is gone.
    """
    # An egg-info of a checkout on sys.path may hide the installation, and does not record its origin.
    origins = [copy.read_text("direct_url.json") for copy in distributions(name=known.name)]
    direct: dict[str, Any] = json.loads(next(filter(None, origins), "{}"))
    url, inside = direct.get("url", ""), direct.get("subdirectory")
    fragment = f"#subdirectory={inside}" if inside else ""
    if "vcs_info" in direct:
        origin = f"{direct['vcs_info']['vcs']}+{url}@{direct['vcs_info']['commit_id']}{fragment}"
        return [f"{known.name}{extra} @ {origin}"]
    if url.startswith("file:"):
        path = Path(url2pathname(urlsplit(url).path))
        if not path.exists():
            mine = "Install marble here again, from where it is now."
            remedy = mine if known.name == DISTRIBUTION else "Say where it is: --from PATH|REQUIREMENT."
            raise RequestError(f"{known.name} was installed here from {path}, which is gone. {remedy}")
        if not inside:
            editable = ["--editable"] if direct.get("dir_info", {}).get("editable") else []
            return [*editable, f"{path}{extra}"]
    return [f"{known.name}{extra} @ {url}{fragment}" if url else f"{known.name}{extra}=={known.version}"]


def _check_offer(python: str, name: str, source: str | None) -> tuple[str, tuple[str, ...]]:
    """Return the version of marble and the names of the rewards in an environment, without marble's own.

    Raises:
        RewardError: there is no reward, not the one that `name` means, or one cannot be imported.
    """
    command = _marble(python, "rewards", "list", "--json")
    done = subprocess.run(command, env=clean_environ(), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RewardError(
            f"marble does not start in {python} (exit code {done.returncode}); see its messages above."
        )
    listed = json.loads(done.stdout)
    rows = [row for row in listed["rewards"] if row["distribution"] != DISTRIBUTION]
    for row in rows:
        if row["error"]:
            raise RewardError(f"in the new environment, {row['error']}")
    names = tuple(row["name"] for row in rows)
    distributions_there = {row["distribution"] for row in rows}
    is_reward = name in installed() or (source is not None and name not in distributions_there)
    if not names or (is_reward and name not in names):
        offer = f"the rewards {', '.join(names)}, not {name!r}" if names else "no reward"
        raise RewardError(
            f"what was installed offers {offer}. Name a distribution with the entry points `marble.rewards`: "
            f"marble rewards install {name} --from PATH|REQUIREMENT"
        )
    return listed["marble"], names
