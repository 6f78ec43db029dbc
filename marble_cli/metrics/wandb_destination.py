"""Decide where metrics go at Weights & Biases.

The configuration comes first, then W&B's own environment variables, settings files and logins.
"""

import configparser
import netrc
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from marble_cli.config.enums import WandbMode
from marble_cli.config.schema import WandbConfig
from marble_cli.errors import ConfigError

SERVICE = "https://api.wandb.ai"
PROJECT = "marble"  # if neither the configuration nor W&B names a project
# W&B's names of modes, and the mode that each means.
MODES = {
    "online": "online",
    "run": "online",
    "shared": "shared",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}


@dataclass(frozen=True)
class WandbDestination:
    """Where metrics go.

    Attributes:
        mode: the mode of W&B, one of the values of `MODES`.
        reason: the setting that chose the mode.
        project: the project.
        entity: the team, or None for the user's default.
        service: the address of W&B's service.
        ignored: messages about settings of W&B that the configuration overrides.
    """

    mode: str
    reason: str
    project: str
    entity: str | None
    service: str
    ignored: tuple[str, ...]

    def __str__(self) -> str:
        if self.mode == "disabled":
            return f"disabled ({self.reason})"
        team = f"{self.entity}/" if self.entity else ""
        return f"{self.mode} ({self.reason}), project {team}{self.project} at {self.service}"


@dataclass(frozen=True)
class Setting:
    """The value of a setting of W&B, and its source: an environment variable or a file."""

    value: str
    source: str


def resolve_destination(config: WandbConfig, environ: Mapping[str, str] | None = None) -> WandbDestination:
    """Decide where a run's metrics go.

    Mode, project and team each come from the first of these that has it: the configuration, W&B's environment
    variable, W&B's settings file in the working directory, W&B's settings file in the home folder. If none
    has a mode, the run is online if there is a login for the service, else offline.

    Args:
        config: the run's `logging.wandb`.
        environ: the environment variables; this process's if None.

    Raises:
        ConfigError: a variable or file names an unknown mode or an invalid address.
    """
    environ = os.environ if environ is None else environ
    settings = _read_settings(environ)
    configured = {
        "mode": None if config.mode is WandbMode.auto else config.mode.value,
        "project": config.project,
        "entity": config.entity,
    }
    ignored = tuple(
        f"logging.wandb.{key}={value} is set, so {settings[key].source}={settings[key].value} is not followed"
        for key, value in configured.items()
        if value
        and key in settings
        and MODES.get(settings[key].value, settings[key].value) not in (value, "")
    )
    service = _service(settings)
    mode, reason = configured["mode"], "logging.wandb.mode"
    # Check the variable even if the configuration sets a mode: W&B reads it as well and fails at an unknown
    # value.
    if mode != "disabled":
        by_settings = _mode(settings)
        if mode is None:
            mode, reason = by_settings or _mode_by_login(service, settings, environ)
    named = {key: setting.value for key, setting in settings.items()}
    return WandbDestination(
        mode=mode,
        reason=reason,
        project=configured["project"] or named.get("project") or PROJECT,
        entity=configured["entity"] or named.get("entity") or None,
        service=service,
        ignored=ignored,
    )


def _read_settings(environ: Mapping[str, str]) -> dict[str, Setting]:
    """Read W&B's own settings by their names; variables have priority over files."""
    config = environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
    workspace = Path(".wandb" if Path(".wandb").exists() else "wandb")
    settings: dict[str, Setting] = {}
    for file in (_expanded(config, environ) / "settings", workspace / "settings"):
        settings |= {key: Setting(value, f"{key} in {file}") for key, value in _read_file(file).items()}
    for key in ("mode", "project", "entity", "base_url", "api_key", "identity_token_file"):
        if (value := environ.get(f"WANDB_{key.upper()}")) is not None:
            settings[key] = Setting(value, f"WANDB_{key.upper()}")
    return settings


def _expanded(path: str, environ: Mapping[str, str]) -> Path:
    """Replace a leading `~/` by the home folder."""
    home = environ.get("HOME") or os.path.expanduser("~")
    return Path(home, path[2:]) if path.startswith("~/") else Path(path)


def _read_file(file: Path) -> dict[str, str]:
    """Read a settings file of W&B; empty if the file is missing or damaged, of which W&B itself warns."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(file, encoding="utf-8")
    except (OSError, UnicodeDecodeError, configparser.Error):
        return {}
    return dict(parser["default"]) if parser.has_section("default") else {}


def _mode(settings: Mapping[str, Setting]) -> tuple[str, str] | None:
    if "mode" not in settings:
        return None
    if (mode := settings["mode"]).value not in MODES:
        raise ConfigError(
            f"{mode.source}={mode.value!r} is no mode of W&B. Expected online, offline, shared, dryrun or "
            "disabled; or unset it."
        )
    return MODES[mode.value], mode.source


def _service(settings: Mapping[str, Setting]) -> str:
    if "base_url" not in settings:
        return SERVICE
    address = urlsplit((setting := settings["base_url"]).value)
    if address.scheme not in ("http", "https") or not address.netloc:
        raise ConfigError(
            f"{setting.source}={setting.value!r} is no address of W&B. Expected e.g. "
            "https://wandb.example.org; or unset it."
        )
    return setting.value.rstrip("/")


def _mode_by_login(
    service: str, settings: Mapping[str, Setting], environ: Mapping[str, str]
) -> tuple[str, str]:
    """Choose online if there is a login for the service: a key, a token or an entry of the netrc file."""
    for key in ("api_key", "identity_token_file"):
        if key in settings and settings[key].value:
            return "online", settings[key].source
    host = urlsplit(service).netloc
    file = _expanded(environ.get("NETRC") or "~/.netrc", environ)
    try:
        entry = netrc.netrc(file).hosts.get(host)
    except (OSError, ValueError, netrc.NetrcParseError):
        entry = None
    if entry and entry[2]:
        return "online", f"login for {host} in {file}"
    return "offline", f"no login for {host}"
