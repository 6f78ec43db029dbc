"""`marble rewards list | show | check | score`; `serve`, `install` and `new` have files of their own."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marble_cli.cli.options import Overrides, to_path
from marble_cli.errors import RequestError
from marble_cli.redaction import HIDDEN, is_secret, redact

if TYPE_CHECKING:
    from marble_cli.config.schema import RewardConfig, RunConfig

app = typer.Typer(
    no_args_is_help=True,
    help="Look at, check, try, serve and write rewards.",
    epilog="Example:  marble rewards show colorfulness",
)

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A reward of the configuration, or an installed one.")
]


def chosen(names: list[str], overrides: list[str]) -> "tuple[dict[str, RewardConfig], RunConfig]":
    """The rewards `names` as overrides or conf/rewards have them, else the installed plugins; and the configuration."""
    from marble_cli.config.compose import choices, compose
    from marble_cli.config.schema import RewardConfig
    from marble_cli.plugins import installed
    from marble_cli.suggest import nearest

    known = installed()
    placed = any(word.lstrip("+").startswith(("rewards=", "eval_rewards")) for word in overrides)
    given = {word.lstrip("+").partition("=")[0] for word in overrides}
    files = choices("rewards")
    wanted = [name for name in dict.fromkeys(names) if name in files and f"rewards.{name}" not in given]
    if wanted and not placed:  # with their files' defaults; their options can then be overridden
        needed = [f"rewards.{name}.optional=false" for name in wanted]
        overrides = [f"rewards=[{','.join(wanted)}]", *needed, *overrides]
    config = compose(overrides)
    there = {name: RewardConfig(plugin=name) for name in known} | config.rewards | config.eval_rewards
    for name in names:
        if name not in there:
            raise RequestError(f"there is no reward {name!r}{nearest(name, there)}")
    return {name: there[name] for name in names}, config


def _settings(name: str, overrides: list[str] | None) -> "RewardConfig":
    return chosen([name], overrides or [])[0][name]


@app.command("list", epilog="Example:  marble rewards list")
def list_(
    ctx: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """List the installed rewards."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from marble_cli import __version__
    from marble_cli.output import answering
    from marble_cli.plugins import installed
    from marble_cli.rewards.api import Declaration
    from marble_cli.rewards.registry import load_plugin

    out = ctx.with_resource(answering())
    rows = []
    for name, entry in installed().items():
        declared, error = Declaration(), ""
        try:
            declared = Declaration.of(load_plugin(name))
        except Exception as failure:  # one broken plugin must not hide the others
            error = str(failure)
        rows.append({
            "name": name, "summary": declared.summary, "requires": list(declared.requires),
            "distribution": entry.dist.name if entry.dist else "", "error": error,
        })  # fmt: skip
    if as_json:
        typer.echo(json.dumps({"marble": __version__, "rewards": rows}, indent=1), file=out)
        return
    table = Table("reward", "what it scores", "needs", "distribution", box=None, pad_edge=False)
    for row in rows:
        scores = (
            f"[red]{escape(redact(str(row['error'])))}[/]" if row["error"] else escape(str(row["summary"]))
        )
        table.add_row(str(row["name"]), scores, ", ".join(row["requires"]), str(row["distribution"]))
    Console(file=out).print(table)


@app.command("show", epilog="Example:  marble rewards show ocr")
def show(ctx: typer.Context, name: Name, overrides: Overrides = None) -> None:
    """Show what a reward needs, gives and takes as options."""
    from rich.console import Console
    from rich.table import Table

    from marble_cli.output import answering
    from marble_cli.rewards.api import Declaration
    from marble_cli.rewards.elsewhere.locate import declare
    from marble_cli.rewards.registry import load_plugin

    out = ctx.with_resource(answering())
    settings = _settings(name, overrides)
    if settings.url is not None or settings.isolated:
        declared = declare(name, settings)
    else:  # it may be shown before its options are chosen
        declared = Declaration.of(load_plugin(settings.plugin))
    low, high = (("-∞" if declared.range[0] is None else f"{declared.range[0]:g}"),
                 ("∞" if declared.range[1] is None else f"{declared.range[1]:g}"))  # fmt: skip
    table = Table(box=None, show_header=False, pad_edge=False)
    for label, value in (
        ("reward", name),
        ("scores", declared.summary),
        *_place(settings),
        (
            "applies to",
            f"prompts with {', '.join(declared.requires)}" if declared.requires else "every prompt",
        ),
        ("range", f"{low} … {high}, higher is better"),
        ("whole groups", "yes" if declared.groupwise else "no"),
        ("license", declared.license or "not declared"),
        ("citation", declared.citation or "not declared"),
        *_options(settings),
    ):
        table.add_row(label, value)
    Console(file=out, markup=False).print(table)


def _place(settings: "RewardConfig") -> list[tuple[str, str]]:
    """Where the reward lives."""
    from marble_cli.plugins import installed
    from marble_cli.rewards.registry import origin

    if settings.url is not None:
        return [("served as", settings.plugin), ("by", settings.url)]
    if settings.isolated:
        from marble_cli.rewards.elsewhere.environment import find

        return [("plugin", settings.plugin), ("isolated in", str(find(settings.plugin).folder))]
    plugin = f"{settings.plugin} = {installed()[settings.plugin].value}"
    return [("plugin", plugin), ("distribution", origin(settings.plugin))]


def _options(settings: "RewardConfig") -> list[tuple[str, str]]:
    """The options that the reward takes, as far as its constructor is at hand."""
    import inspect

    from marble_cli.rewards.registry import load_plugin, parameters

    if settings.url is not None or settings.isolated:
        return [(f"option {key}", _shown(key, value)) for key, value in settings.options.items()]
    rows = []
    for key, parameter in parameters(load_plugin(settings.plugin)).items():
        if key not in ("device", "dtype") and parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            value = settings.options.get(key, parameter.default)
            shown = "required" if value is inspect.Parameter.empty else _shown(key, value)
            rows.append((f"option {key}", shown))
    return rows


def _shown(key: str, value: Any) -> str:
    """An option's value as a table may show it."""
    return HIDDEN if is_secret(key, value) else redact(repr(value))


@app.command("check", epilog="Example:  marble rewards check ocr")
def check(
    ctx: typer.Context,
    name: Name,
    overrides: Overrides = None,
    metadata: Annotated[
        str | None, typer.Option(metavar="JSON", help="Metadata to show it, where no embedded prompt has it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Test a reward against the plugin contract."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from marble_cli.output import answering
    from marble_cli.rewards.applicability import fitted
    from marble_cli.rewards.conformance import Outcome, run_checks
    from marble_cli.rewards.elsewhere.locate import maker
    from marble_cli.rewards.kinds import MetadataError
    from marble_cli.rewards.testing.samples import sample_batch

    out = ctx.with_resource(answering())
    settings = _settings(name, overrides)
    reward = maker(name, settings, "cpu")()
    try:
        batch = sample_batch(reward.declaration.requires if metadata is None else ())
        if metadata is not None:
            try:
                known = fitted(reward.declaration.types, _json(metadata))
            except MetadataError as error:
                raise RequestError(f"--metadata {metadata!r}: {error}") from error
            batch = batch._replace(metadata=[known] * len(batch.prompts))
        here = settings.url is None and not settings.isolated
        checks = run_checks(reward, batch, _on_gpu(name, settings), here)
    finally:
        reward.close()
    good = not any(check.outcome is Outcome.FAIL for check in checks)
    if as_json:
        rows = [{"name": c.name, "outcome": c.outcome.value, "detail": c.detail} for c in checks]
        typer.echo(json.dumps({"reward": name, "ok": good, "checks": rows}, indent=1), file=out)
    else:
        colors = {Outcome.PASS: "green", Outcome.FAIL: "red", Outcome.SKIPPED: "yellow"}
        table = Table("check", "", "detail", box=None, pad_edge=False)
        for check in checks:
            outcome = f"[{colors[check.outcome]}]{check.outcome.value}[/]"
            table.add_row(check.name, outcome, escape(redact(check.detail)))
        Console(file=out).print(table)
    if not good:
        raise typer.Exit(1)


def _on_gpu(name: str, settings: "RewardConfig") -> Any:
    """A function that builds the reward on the GPU, or why there is none."""
    import torch

    from marble_cli.rewards.registry import build, load_plugin, parameters

    if settings.url is not None or settings.isolated:
        return "it computes in another process"
    if "device" not in parameters(load_plugin(settings.plugin)):
        return "its constructor takes no device"
    if not torch.cuda.is_available():
        return "no GPU here"
    options = {key: value for key, value in settings.options.items() if key != "device"}
    return lambda: build(name, settings.plugin, options, "cuda")


@app.command("score", epilog="Example:  marble rewards score ocr --image sign.png --prompt 'says \"47\"'")
def score(
    ctx: typer.Context,
    name: Name,
    image: Annotated[Path, typer.Option(parser=to_path, metavar="FILE", help="The picture.")],
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="The prompt that it was made for.")],
    overrides: Overrides = None,
    metadata: Annotated[
        str, typer.Option(metavar="JSON", help="What a prompt file would say of the prompt.")
    ] = "{}",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score one picture."""
    from marble_cli.output import answering
    from marble_cli.rewards.pictures import read_picture
    from marble_cli.rewards.scorer import open_scorer

    out = ctx.with_resource(answering())
    known = _json(metadata)
    pictures = read_picture(image)[None]
    settings = _settings(name, overrides)
    settings.sources, settings.requires, settings.max_failed = None, [], 0.0  # a run's own
    with open_scorer({name: settings}, "cpu") as scorer:
        scores = scorer.submit(pictures, [prompt], [known], [""]).result()
        scorer.check(scores)
        value = scores.values[0, 0].item()
    outcome = "not applicable" if math.isnan(value) else "score"
    if as_json:
        typer.echo(
            json.dumps({"reward": name, "outcome": outcome, "score": None if math.isnan(value) else value}),
            file=out,
        )
    else:
        typer.echo(f"{name}: {outcome}" if math.isnan(value) else f"{name}: {value:.6g}", file=out)


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise RequestError(f"--metadata {text!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RequestError(f'--metadata {text!r}: expected an object such as {{"text": "47"}}.')
    return value
