"""The page docs/reference/cli.md: every command, from the help of the Typer app itself."""

from collections.abc import Iterator
from enum import Enum
from typing import Any

from typer.main import get_command

from marble_cli.cli.app import app
from scripts.reference.markdown import MADE, cell, code, table

INTRODUCTION = """# Command line

`marble COMMAND --help` prints the same texts. [Exit codes](exit-codes.md) has what each command returns, and
[Configuration](configuration.md) the keys that an OVERRIDE may set.

| argument | accepts |
| --- | --- |
| OVERRIDE | Hydra's grammar: `group=choice`, `key.path=value`, `+new=value`, `~gone` |
| RUN | a run's folder; its latest checkpoint is taken. `marble report` also takes a sweep's folder |
| CHECKPOINT | a step's folder below `checkpoints/` of a run, or the file `best` or `latest` there |
| `base` | the model before training |
"""


def render() -> str:
    """Return the page."""
    parts = [MADE.format(source="marble_cli/cli"), INTRODUCTION]
    for path, command in _walk("marble", get_command(app)):
        parts.append(_section(path, command))
    return "".join(parts)


def _walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Yield every command that can be run, with the words that run it."""
    for name, child in getattr(command, "commands", {}).items():
        yield from _walk(f"{path} {name}", child)
    if not getattr(command, "commands", {}):
        yield path, command


def _section(path: str, command: Any) -> str:
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [p for p in shown if p.param_type_name == "argument"]
    options = [p for p in shown if p.param_type_name == "option" and p.name != "help"]
    words = [_metavar(p) if p.required else f"[{_metavar(p)}]" for p in arguments]
    usage = " ".join([path, *words, *(["[OPTIONS]"] if options else [])])
    parts = [f"\n## {path}\n\n{_text(command.help)}\n\n```text\n{usage}\n```\n"]
    rows = [(code(_metavar(p)), cell(p.help or "")) for p in arguments]
    rows += [(code(_option(p)), cell(f"{p.help or ''}{_default(p)}")) for p in options]
    if rows:
        parts.append("\n" + table(("argument or option", "meaning"), rows))
    if command.epilog:
        parts.append(f"\n```text\n{' '.join(command.epilog.split())}\n```\n")
    return "".join(parts)


def _metavar(argument: Any) -> str:
    many = " ..." if argument.nargs == -1 and "..." not in (argument.metavar or "") else ""
    return f"{argument.metavar or argument.name.upper()}{many}"


def _option(option: Any) -> str:
    names = ", ".join(option.opts)
    if option.is_flag:
        return names
    default = option.default
    choices = "|".join(member.value for member in type(default)) if isinstance(default, Enum) else "VALUE"
    return f"{names} {option.metavar or choices}"


def _default(option: Any) -> str:
    default = getattr(option.default, "value", option.default)
    named = f" Variable: `{option.envvar}`." if option.envvar else ""
    if option.is_flag or default is None or option.required or callable(default):
        return named + (" Required." if option.required else "")
    return f"{named} Default: `{default}`."


def _text(text: str) -> str:
    return " ".join((text or "").split())
