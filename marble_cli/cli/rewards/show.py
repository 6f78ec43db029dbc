"""`marble rewards show`."""

import inspect
from typing import TYPE_CHECKING, Any

import typer

from marble_cli.cli.libraries import importing
from marble_cli.cli.options import Overrides
from marble_cli.cli.rewards.selection import Name, select_reward
from marble_cli.redaction import HIDDEN, is_secret, redact

if TYPE_CHECKING:
    from marble_cli.config.schema import RewardConfig
    from marble_cli.rewards.api import Bounds, Declaration

EPILOG = "Example:  marble rewards show ocr"


def show(ctx: typer.Context, name: Name, overrides: Overrides = None) -> None:
    """Show what a reward scores, which metadata it requires, and its options."""
    from rich.console import Console
    from rich.table import Table

    from marble_cli.output import answering

    out = ctx.with_resource(answering())
    settings = select_reward(name, overrides)
    with importing():  # the plugin
        declaration = _declaration(name, settings)
    requires = ", ".join(dict.fromkeys([*declaration.requires, *(settings.requires or ())]))
    before = f"the picture{'s' if declaration.takes_references else ''} before the edit"
    table = Table(box=None, show_header=False, pad_edge=False)
    for label, value in (
        ("reward", name),
        ("scores", declaration.summary),
        *_location_rows(settings),
        ("applies to", f"prompts with the metadata {requires}" if requires else "every prompt"),
        *([("compares with", before)] if declaration.needs_conditions else []),
        *([("of", "videos alone")] if declaration.needs_frames else []),
        *([("aspects", ", ".join(declaration.aspects))] if declaration.aspects else []),
        *(
            (
                f"range{f' of {aspect}' if aspect else ''}",
                f"{_bounds(declaration.bounds(aspect))}, higher is better",
            )
            for aspect in (declaration.aspects if declaration.ranges else ("",))
        ),
        *([("only if", settings.only_if)] if settings.only_if else []),
        ("needs whole groups", "yes" if declaration.groupwise else "no"),
        ("license", declaration.license or "not declared"),
        ("citation", declaration.citation or "not declared"),
        *_option_rows(settings),
    ):
        table.add_row(label, value)
    Console(file=out, markup=False).print(table)


def _declaration(name: str, settings: "RewardConfig") -> "Declaration":
    from marble_cli.rewards.elsewhere.locate import declare
    from marble_cli.rewards.registry import check_options, load_plugin

    if settings.url is not None or settings.isolated:
        return declare(name, settings)
    # A reward may be shown before its required options are chosen.
    return check_options(
        f"rewards.{name}",
        load_plugin(settings.plugin),
        settings.options,
        list(settings.aspects),
        complete=False,
    )


def _bounds(bounds: "Bounds") -> str:
    return f"{_bound(bounds[0], '-∞')} … {_bound(bounds[1], '∞')}"


def _bound(value: float | None, unbounded: str) -> str:
    return unbounded if value is None else f"{value:g}"


def _location_rows(settings: "RewardConfig") -> list[tuple[str, str]]:
    """Name the plugin and the distribution, environment or server that provides it."""
    from marble_cli.plugins import installed
    from marble_cli.rewards.registry import origin

    if settings.url is not None:
        return [("served as", settings.plugin), ("by", settings.url)]
    if settings.isolated:
        from marble_cli.rewards.elsewhere.environment import find

        return [("plugin", settings.plugin), ("isolated in", str(find(settings.plugin).folder))]
    plugin = f"{settings.plugin} = {installed()[settings.plugin].value}"
    return [("plugin", plugin), ("distribution", origin(settings.plugin))]


def _option_rows(settings: "RewardConfig") -> list[tuple[str, str]]:
    """List the constructor's options, or those that are set where the constructor is in another process."""
    from marble_cli.config.schema import HOST
    from marble_cli.rewards.api import ANYTHING
    from marble_cli.rewards.registry import PASSED, load_plugin, parameters

    if settings.url is not None or settings.isolated:
        return [(f"option {key}", _shown(key, value)) for key, value in settings.options.items()]
    rows = []
    for key, parameter in parameters(load_plugin(settings.plugin)).items():
        if key not in HOST | PASSED and parameter.kind not in ANYTHING:
            value = settings.options.get(key, parameter.default)
            shown = "required" if value is inspect.Parameter.empty else _shown(key, value)
            rows.append((f"option {key}", shown))
    return rows


def _shown(key: str, value: Any) -> str:
    return HIDDEN if is_secret(key, value) else redact(repr(value))
