"""`marble rewards check`."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marble_cli.cli.libraries import importing
from marble_cli.cli.options import Overrides
from marble_cli.cli.rewards.selection import Name, parse_metadata, select_reward
from marble_cli.errors import RequestError

if TYPE_CHECKING:
    from typing import TextIO

    from marble_cli.config.schema import RewardConfig
    from marble_cli.rewards.api import Batch, Declaration
    from marble_cli.rewards.conformance import Check

EPILOG = "Example:  marble rewards check ocr"


def check(
    ctx: typer.Context,
    name: Name,
    overrides: Overrides = None,
    metadata: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="Metadata of the sample prompts, if no embedded prompt has what the reward requires.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Test a reward against the plugin contract."""
    from marble_cli.output import answering

    with importing():
        from marble_cli.rewards.conformance import Outcome, run_checks
        from marble_cli.rewards.elsewhere.locate import maker

    out = ctx.with_resource(answering())
    settings = select_reward(name, overrides)
    reward = maker(name, settings, "cpu")()
    try:
        batch = _samples(reward.declaration, metadata)
        in_process = settings.url is None and not settings.isolated
        checks = run_checks(reward, batch, gpu_maker(name, settings), in_process)
    finally:
        reward.close()
    ok = not any(check.outcome is Outcome.FAIL for check in checks)
    if as_json:
        rows = [{"name": c.name, "outcome": c.outcome.value, "detail": c.detail} for c in checks]
        typer.echo(json.dumps({"reward": name, "ok": ok, "checks": rows}, indent=1), file=out)
    else:
        _print_table(checks, out)
    if not ok:
        raise typer.Exit(1)


def _samples(declaration: "Declaration", metadata: str | None) -> "Batch":
    """Return the sample batch, with the metadata of --metadata on every prompt if given."""
    from marble_cli.rewards.applicability import fit_metadata
    from marble_cli.rewards.kinds import MetadataError
    from marble_cli.rewards.testing.samples import samples_for

    if metadata is None:
        return samples_for(declaration, declaration.requires)
    batch = samples_for(declaration, ())
    try:
        known = fit_metadata(declaration.types, parse_metadata(metadata))
    except MetadataError as error:
        raise RequestError(f"--metadata {metadata!r}: {error}") from error
    return batch._replace(metadata=[known] * len(batch.prompts))


def gpu_maker(name: str, settings: "RewardConfig") -> Any:
    """Return a function that builds the reward on the GPU, or the reason why that is impossible."""
    import torch

    from marble_cli.rewards.registry import build, load_plugin, parameters

    if settings.url is not None or settings.isolated:
        return "it computes in another process"
    if "device" not in parameters(load_plugin(settings.plugin)):
        return "its constructor takes no device"
    if not torch.cuda.is_available():
        return "this machine has no GPU"
    options = {key: value for key, value in settings.options.items() if key != "device"}
    return lambda: build(name, settings.plugin, options, "cuda", aspects=tuple(settings.aspects))


def _print_table(checks: "list[Check]", out: "TextIO") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from marble_cli.redaction import redact
    from marble_cli.rewards.conformance import Outcome

    colors = {Outcome.PASS: "green", Outcome.FAIL: "red", Outcome.SKIPPED: "yellow"}
    table = Table("check", "outcome", "detail", box=None, pad_edge=False)
    for check in checks:
        outcome = f"[{colors[check.outcome]}]{check.outcome.value}[/]"
        table.add_row(check.name, outcome, escape(redact(check.detail)))
    Console(file=out).print(table)
