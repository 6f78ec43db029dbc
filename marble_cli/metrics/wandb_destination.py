"""Where figures go at Weights & Biases: what the configuration says, then W&B's own variables, settings files and logins."""

import configparser
import netrc
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from marble_cli.config.schema import WandbConfig, WandbMode
from marble_cli.errors import ConfigError

SERVICE = "https://api.wandb.ai"
PROJECT = "marble"  # where neither the configuration nor W&B names one
MODES = {
    "online": "online", "run": "online", "shared": "shared", "offline": "offline", "dryrun": "offline", "disabled": "disabled",
}  # fmt: skip


@dataclass(frozen=True)
class Destination:
    """Where figures go: a W&B mode (one of `MODES`' values) and why, project, team and service; and what is not followed."""

    mode: str
    reason: str
    project: str
    entity: str | None
    service: str
    unheard: tuple[str, ...]

    def __str__(self) -> str:
        if self.mode == "disabled":
            return f"disabled ({self.reason})"
        team = f"{self.entity}/" if self.entity else ""
        return f"{self.mode} ({self.reason}), project {team}{self.project} at {self.service}"


@dataclass(frozen=True)
class Told:
    """A value and what tells it: a variable or a file."""

    value: str
    source: str


def destination(settings: WandbConfig, environ: Mapping[str, str] | None = None) -> Destination:
    """Decide where a run's figures go.

    Each of mode, project and team comes from the first of these that has it: the configuration, W&B's variable, W&B's
    settings file in this folder, that in the home folder. Without a mode, a login for the service decides.

    Args:
        settings: the run's `logging.wandb`.
        environ: the environment's variables; this process's if None.

    Raises:
        ConfigError: a variable or file names a mode or an address that there is none of.
    """
    environ = os.environ if environ is None else environ
    told = _told(environ)
    asked = {
        "mode": None if settings.mode is WandbMode.auto else settings.mode.value,
        "project": settings.project,
        "entity": settings.entity,
    }
    unheard = tuple(
        f"logging.wandb.{key}={value} is set, so {told[key].source}={told[key].value} is not followed"
        for key, value in asked.items()
        if value and key in told and MODES.get(told[key].value, told[key].value) not in (value, "")
    )
    service = _service(told)
    mode, reason = asked["mode"], "logging.wandb.mode"
    # W&B reads the variable itself, whatever it is told otherwise, and fails at a value that it does not know.
    if mode != "disabled":
        told_mode = _mode(told)
        if mode is None:
            mode, reason = told_mode or _by_login(service, told, environ)
    return Destination(
        mode, reason,
        asked["project"] or (told["project"].value if "project" in told else "") or PROJECT,
        asked["entity"] or (told["entity"].value if "entity" in told else "") or None,
        service, unheard,
    )  # fmt: skip


def _told(environ: Mapping[str, str]) -> dict[str, Told]:
    """Collect what W&B is told beside the configuration, by its own names of settings; variables win over files."""
    config = environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
    workspace = Path(".wandb" if Path(".wandb").exists() else "wandb")
    told: dict[str, Told] = {}
    for file in (_expanded(config, environ) / "settings", workspace / "settings"):
        told |= {key: Told(value, f"{key} in {file}") for key, value in _read(file).items()}
    for key in ("mode", "project", "entity", "base_url", "api_key", "identity_token_file"):
        if (value := environ.get(f"WANDB_{key.upper()}")) is not None:
            told[key] = Told(value, f"WANDB_{key.upper()}")
    return told


def _expanded(path: str, environ: Mapping[str, str]) -> Path:
    """Return `path` with the home folder for `~`, where there is one."""
    home = environ.get("HOME") or os.path.expanduser("~")
    return Path(home, path[2:]) if path.startswith("~/") else Path(path)


def _read(file: Path) -> dict[str, str]:
    """Read a settings file of W&B; it says nothing where it is absent or damaged, of which W&B itself warns."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(file, encoding="utf-8")
    except (OSError, UnicodeDecodeError, configparser.Error):
        return {}
    return dict(parser["default"]) if parser.has_section("default") else {}


def _mode(told: Mapping[str, Told]) -> tuple[str, str] | None:
    if "mode" not in told:
        return None
    if (found := told["mode"]).value not in MODES:
        raise ConfigError(
            f"{found.source}={found.value!r} is no mode of W&B. Expected online, offline, shared, dryrun or disabled; or "
            "unset it."
        )
    return MODES[found.value], found.source


def _service(told: Mapping[str, Told]) -> str:
    if "base_url" not in told:
        return SERVICE
    address = urlsplit((found := told["base_url"]).value)
    if address.scheme not in ("http", "https") or not address.netloc:
        raise ConfigError(
            f"{found.source}={found.value!r} is no address of W&B. Expected e.g. https://wandb.example.org; or unset it."
        )
    return found.value.rstrip("/")


def _by_login(service: str, told: Mapping[str, Told], environ: Mapping[str, str]) -> tuple[str, str]:
    """Choose online where there is a login for the service: a key, a token or an entry of the netrc file."""
    for key in ("api_key", "identity_token_file"):
        if key in told and told[key].value:
            return "online", told[key].source
    host = urlsplit(service).netloc
    file = _expanded(environ.get("NETRC") or "~/.netrc", environ)
    try:
        entry = netrc.netrc(file).hosts.get(host)
    except (OSError, ValueError, netrc.NetrcParseError):
        entry = None
    if entry and entry[2]:
        return "online", f"login for {host} in {file}"
    return "offline", f"no login for {host}"
