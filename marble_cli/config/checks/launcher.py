"""Refuse values of `launcher` that a SLURM batch script cannot hold, or that the local launcher ignores."""

import re

from marble_cli.config.enums import LauncherName
from marble_cli.config.schema import LauncherConfig
from marble_cli.errors import ConfigError

SLURM_ONLY = (
    "time", "partition", "account", "cpus_per_task", "memory", "warning", "requeues", "setup", "extra",
)  # fmt: skip
# Options of sbatch that the script itself sets and relies on.
RESERVED = ("array", "nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "output", "requeue", "signal")
OPTION = re.compile(r"[a-z][a-z_-]*", re.ASCII)
OPTION_VALUE = re.compile(r"[\w.,:;/@+=*&|!^%\[\]()-]+", re.ASCII)


def check_launcher(launcher: LauncherConfig) -> None:
    """Check what becomes a line of sbatch's options, and that nothing is set in vain.

    Raises:
        ConfigError: a value does not fit into its line, or belongs to another launcher.
    """
    if launcher.time is not None and launcher.time.isdigit():
        # YAML reads 12:00:00 as 43200, which SLURM would take for minutes.
        _refuse("time", launcher.time, "hours:minutes:seconds or days-hours, in quotes")
    for key in ("time", "partition", "account", "memory"):
        _check_value(key, getattr(launcher, key))
    for name, value in launcher.extra.items():
        key, option = f"extra.{name}", str(name)
        _check_value(key, value)
        if not OPTION.fullmatch(option):
            _refuse(key, repr(value), "an option's long name, e.g. extra.qos")
        if option.replace("_", "-") in RESERVED:
            _refuse(key, value, f"no {option.replace('_', '-')}, which the script itself counts on")
    for line in launcher.setup:
        if "\n" in line:
            _refuse("setup", repr(line), "a list of single lines")
    if launcher.name is LauncherName.local:
        defaults = LauncherConfig(nproc=1)
        for key in SLURM_ONLY:
            if getattr(launcher, key) != getattr(defaults, key):
                _refuse(key, getattr(launcher, key), "launcher=slurm beside it")


def _check_value(key: str, value: object) -> None:
    if value is not None and not OPTION_VALUE.fullmatch(str(value)):
        _refuse(key, repr(value), "letters, digits and signs without blanks or quotes")


def _refuse(key: str, value: object, expected: str) -> None:
    raise ConfigError(f"launcher.{key}={value}: expected {expected}.")
