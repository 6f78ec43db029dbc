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
        list[Path] | None,
        typer.Option(
            parser=to_path,
            metavar="FILE",
            help="The picture that the image was edited from, fitted to the image's size; repeat the option "
            "for several, which keep their shapes.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score one picture with one reward."""
    from marble_cli.output import answering

    with importing():
        from marble_cli.config.schema import AspectConfig
        from marble_cli.data.conditions import Condition
        from marble_cli.errors import RequestError, RewardError
        from marble_cli.pictures import read_picture, seen_sizes
        from marble_cli.rewards.scorer import open_scorer

    out = ctx.with_resource(answering())
    prompt_metadata = parse_metadata(metadata)
    pictures = read_picture(image)[None]
    height, width = pictures.shape[2:]
    given = [Condition("--condition", path) for path in condition or ()]
    sizes = seen_sizes(given, width, height)
    before = [[picture.pixels(*size) for picture, size in zip(given, sizes, strict=True)]] if given else None
    settings = select_reward(name, overrides)
    settings.sources, settings.requires, settings.only_if = None, [], None  # a single picture has no source
    settings.aspects = {aspect: AspectConfig() for aspect in settings.aspects}
    with open_scorer({name: settings}, "cpu") as scorer:
        declaration = scorer.workers[0].reward.declaration
        if before is None and declaration.needs_conditions:
            raise RequestError(
                f"reward {name} compares an image with the picture that it was edited from. Expected that "
                "picture as well: --condition FILE"
            )
        if declaration.needs_frames:
            raise RequestError(
                f"reward {name} scores videos, and no picture. Expected another reward; marble eval scores "
                "what a model draws with this one."
            )
        scores = scorer.submit(pictures, [prompt], [prompt_metadata], [""], references=before).result()
        for reward, failed in zip(scores.names, scores.failed[:, 0], strict=True):
            if failed:
                raise RewardError(
                    f"reward {reward} gave no score: {scorer.workers[0].errors[reward]}. Mend the plugin, "
                    "its options or the metadata."
                )
    values = [
        score.item() + 0.0 if applies else None  # no -0
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
