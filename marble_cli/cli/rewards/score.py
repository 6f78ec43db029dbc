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
    condition: Annotated[
        Path | None,
        typer.Option(
            parser=to_path,
            metavar="FILE",
            help="The picture that the image was edited from; it is fitted to the image's size.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score one picture with one reward."""
    from marble_cli.output import answering

    with importing():
        from marble_cli.config.schema import AspectConfig
        from marble_cli.data.conditions import fit_picture
        from marble_cli.errors import RequestError
        from marble_cli.pictures import read_picture
        from marble_cli.rewards.scorer import open_scorer

    out = ctx.with_resource(answering())
    prompt_metadata = parse_metadata(metadata)
    pictures = read_picture(image)[None]
    height, width = pictures.shape[2:]
    before = None if condition is None else fit_picture(read_picture(condition), width, height)[None]
    settings = select_reward(name, overrides)
    # A single picture has no source, and a failure must not pass for "does not apply".
    settings.sources, settings.requires, settings.max_failed, settings.only_if = None, [], 0.0, None
    settings.aspects = {aspect: AspectConfig() for aspect in settings.aspects}
    with open_scorer({name: settings}, "cpu") as scorer:
        if before is None and scorer.workers[0].reward.declaration.needs_conditions:
            raise RequestError(
                f"reward {name} compares an image with the picture that it was edited from. Expected that "
                "picture as well: --condition FILE"
            )
        if scorer.workers[0].reward.declaration.needs_frames:
            raise RequestError(
                f"reward {name} scores videos, and no picture. Expected another reward; marble eval scores "
                "what a model draws with this one."
            )
        scores = scorer.submit(pictures, [prompt], [prompt_metadata], [""], before).result()
        scorer.check(scores)
    values = [
        score.item() if applies else None
        for score, applies in zip(scores.values[:, 0], scores.applicable[:, 0], strict=True)
    ]
    rows = [
        {"reward": reward, "outcome": "not applicable" if value is None else "score", "score": value}
        for reward, value in zip(scores.names, values, strict=True)
    ]
    if as_json:
        typer.echo(json.dumps(rows[0] if scores.names == [name] else rows), file=out)
        return
    for row in rows:
        text = row["outcome"] if row["score"] is None else f"{row['score']:.6g}"
        typer.echo(f"{row['reward']}: {text}", file=out)
