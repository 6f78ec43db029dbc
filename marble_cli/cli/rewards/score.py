"""`marble rewards score`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from marble_cli.cli.libraries import importing
from marble_cli.cli.options import Overrides, to_path
from marble_cli.cli.rewards.selection import Name, parse_metadata, select_reward

EPILOG = "Example:  marble rewards score ocr --image sign.png --prompt 'says \"47\"'"


def score(
    ctx: typer.Context,
    name: Name,
    image: Annotated[Path, typer.Option(parser=to_path, metavar="FILE", help="The picture to score.")],
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="The prompt of the picture.")],
    overrides: Overrides = None,
    metadata: Annotated[
        str, typer.Option(metavar="JSON", help="Metadata of the prompt, as a prompt file would give it.")
    ] = "{}",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score one picture with one reward."""
    from marble_cli.output import answering

    with importing():
        from marble_cli.config.schema import AspectConfig
        from marble_cli.rewards.elsewhere.locate import declare
        from marble_cli.rewards.pictures import read_picture
        from marble_cli.rewards.scorer import open_scorer

    out = ctx.with_resource(answering())
    prompt_metadata = parse_metadata(metadata)
    pictures = read_picture(image)[None]
    settings = select_reward(name, overrides)
    # A single picture has no source, and a failure must not pass for "does not apply".
    settings.sources, settings.requires, settings.max_failed, settings.only_if = None, [], 0.0, None
    aspects = [*settings.aspects] or declare(name, settings).aspects
    settings.aspects = {aspect: AspectConfig() for aspect in aspects}
    with open_scorer({name: settings}, "cpu") as scorer:
        scores = scorer.submit(pictures, [prompt], [prompt_metadata], [""]).result()
        scorer.check(scores)
    for reward, score, applies in zip(scores.names, scores.values, scores.applicable, strict=True):
        value = score.item() if applies else None
        outcome = "not applicable" if value is None else "score"
        if as_json:
            typer.echo(json.dumps({"reward": reward, "outcome": outcome, "score": value}), file=out)
        else:
            typer.echo(f"{reward}: {outcome if value is None else f'{value:.6g}'}", file=out)
