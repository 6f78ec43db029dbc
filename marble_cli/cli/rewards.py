"""`marble rewards list | show | check | score`."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marble_cli.cli.options import Overrides
from marble_cli.errors import RequestError

if TYPE_CHECKING:
    from marble_cli.config.schema import Reward as Settings

app = typer.Typer(
    no_args_is_help=True,
    help="Look at, check and try the installed rewards.",
    epilog="Example:  marble rewards show colorfulness",
)

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A reward of the configuration, or an installed one.")
]


def _settings(name: str, overrides: list[str]) -> "Settings":
    """The configured reward `name`, else the installed plugin of that name with its defaults."""
    from marble_cli.config.compose import compose
    from marble_cli.config.schema import Reward
    from marble_cli.rewards.registry import installed
    from marble_cli.suggest import nearest

    config = compose(overrides)
    configured = {**config.rewards, **config.eval_rewards}
    if name in configured:
        return configured[name]
    if name in (known := installed()):
        return Reward(plugin=name)
    raise RequestError(f"there is no reward {name!r}{nearest(name, {*configured, *known})}")


@app.command("list", epilog="Example:  marble rewards list")
def list_() -> None:
    """List the installed rewards."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from marble_cli.rewards.api import Declaration
    from marble_cli.rewards.registry import installed, load_plugin

    table = Table("reward", "what it scores", "needs", "distribution", box=None, pad_edge=False)
    for name, entry in installed().items():
        try:
            declared = Declaration.of(load_plugin(name))
            row = (declared.summary, ", ".join(declared.requires))
        except Exception as error:  # one broken plugin must not hide the others
            row = (f"[red]{escape(str(error))}[/]", "")
        table.add_row(name, *row, entry.dist.name if entry.dist else "")
    Console().print(table)


@app.command("show", epilog="Example:  marble rewards show ocr")
def show(name: Name, overrides: Overrides = None) -> None:
    """Show what a reward needs, gives and takes as options."""
    import inspect

    from rich.console import Console
    from rich.table import Table

    from marble_cli.rewards.api import Declaration
    from marble_cli.rewards.registry import installed, load_plugin, parameters

    settings = _settings(name, overrides or [])
    plugin, entry = load_plugin(settings.plugin), installed()[settings.plugin]
    declared = Declaration.of(plugin)
    low, high = (("-∞" if declared.range[0] is None else f"{declared.range[0]:g}"),
                 ("∞" if declared.range[1] is None else f"{declared.range[1]:g}"))  # fmt: skip
    table = Table(box=None, show_header=False, pad_edge=False)
    for label, value in (
        ("reward", name),
        ("scores", declared.summary),
        ("plugin", f"{settings.plugin} = {entry.value}"),
        ("distribution", f"{entry.dist.name} {entry.dist.version}" if entry.dist else ""),
        (
            "applies to",
            f"prompts with {', '.join(declared.requires)}" if declared.requires else "every prompt",
        ),
        ("range", f"{low} … {high}, higher is better"),
        ("whole groups", "yes" if declared.groupwise else "no"),
        ("license", declared.license or "not declared"),
        ("citation", declared.citation or "not declared"),
    ):
        table.add_row(label, value)
    for key, parameter in parameters(plugin).items():
        if key not in ("device", "dtype") and parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            value = settings.options.get(key, parameter.default)
            table.add_row(f"option {key}", "required" if value is inspect.Parameter.empty else repr(value))
    Console(markup=False).print(table)


@app.command("check", epilog="Example:  marble rewards check ocr")
def check(
    name: Name,
    overrides: Overrides = None,
    metadata: Annotated[
        str | None, typer.Option(metavar="JSON", help="Metadata to show it, where no embedded prompt has it.")
    ] = None,
) -> None:
    """Test a reward against the plugin contract."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from marble_cli.rewards.conformance import run_checks, sample_batch

    reward = _build(name, overrides or [])
    if metadata is None:
        batch = sample_batch(reward.declaration.requires)
    else:
        batch = sample_batch(())
        batch = batch._replace(metadata=[_json(metadata)] * len(batch.prompts))
    checks = run_checks(reward, batch)
    table = Table("check", "", "detail", box=None, pad_edge=False)
    for result in checks:
        table.add_row(
            result.name, "[green]pass[/]" if result.passed else "[red]FAIL[/]", escape(result.detail)
        )
    Console().print(table)
    if not all(result.passed for result in checks):
        raise typer.Exit(1)


@app.command("score", epilog="Example:  marble rewards score ocr --image sign.png --prompt 'says \"47\"'")
def score(
    name: Name,
    image: Annotated[Path, typer.Option(metavar="FILE", help="The picture.")],
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="The prompt that it was made for.")],
    overrides: Overrides = None,
    metadata: Annotated[
        str, typer.Option(metavar="JSON", help="What a prompt file would say of the prompt.")
    ] = "{}",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score one picture."""
    import numpy as np
    import torch
    from PIL import Image, UnidentifiedImageError

    from marble_cli.rewards.scorer import open_scorer

    known = _json(metadata)
    try:
        pixels = np.asarray(Image.open(image).convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise RequestError(
            f"--image {image} cannot be read: {error}. Expected a PNG or JPEG file."
        ) from error
    pictures = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    settings = _settings(name, overrides or [])
    settings.sources, settings.requires = None, []  # a run's own
    with open_scorer({name: settings}, "cpu") as scorer:
        scores = scorer.submit(pictures, [prompt], [known], [""]).result()
        scorer.check(scores)
        value = scores.values[0, 0].item()
    outcome = "not applicable" if math.isnan(value) else "score"
    if as_json:
        typer.echo(
            json.dumps({"reward": name, "outcome": outcome, "score": None if math.isnan(value) else value})
        )
    else:
        typer.echo(f"{name}: {outcome}" if math.isnan(value) else f"{name}: {value:.6g}")


def _build(name: str, overrides: list[str]) -> Any:
    from marble_cli.rewards.registry import build

    settings = _settings(name, overrides)
    return build(name, settings.plugin, settings.options, "cpu")


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise RequestError(f"--metadata {text!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RequestError(f'--metadata {text!r}: expected an object such as {{"text": "47"}}.')
    return value
