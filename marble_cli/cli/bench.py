"""`marble bench`."""

import json
import os
import re
from pathlib import Path
from typing import Annotated

import typer

from marble_cli.cli.libraries import importing
from marble_cli.cli.options import to_path
from marble_cli.errors import RequestError

EPILOG = (
    "Example:  marble bench base runs/demo-0 --benchmark tiny\n\n"
    "Any model:  marble bench base lora.safetensors --benchmark geneval,ocr ~preset model=sd3"
)
OVERRIDE = re.compile(r"[+~]{0,2}[\w.$-]+=.*|~[\w.$-]+", re.DOTALL)


def bench(
    ctx: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET|OVERRIDE",
            help="Targets as in `marble eval`; changes of the model (model.KEY=VALUE) or the protocol "
            "(benchmark.KEY=VALUE).",
        ),
    ],
    *,
    benchmark: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Any of tiny, geneval, geneval2, dpg, hpdv2, ocr, pickscore, drawbench, partiprompts.",
        ),
    ],
    output: Annotated[
        Path, typer.Option(parser=to_path, metavar="DIR", help="Write bench.json to this folder.")
    ] = Path("bench"),
    as_json: Annotated[bool, typer.Option("--json", help="Print bench.json instead of a table.")] = False,
) -> None:
    """Score targets on benchmarks by pinned protocols; the same command continues a killed one."""
    # A cell of a sweep is a folder such as balance.floor=0.1.
    overrides = [word for word in words if OVERRIDE.fullmatch(word) and not os.path.exists(word)]
    targets = [word for word in words if word not in overrides]
    names = list(dict.fromkeys(name.strip() for name in benchmark.split(",") if name.strip()))
    if not names:
        raise RequestError(f"--benchmark {benchmark!r}: expected a name, such as tiny or geneval,ocr.")
    if not targets:
        raise RequestError(f"bench {' '.join(words)}: expected a target, such as base or a run's folder.")
    from rich.console import Console

    from marble_cli.launch.local import end_with_launcher, launched

    if launched():
        end_with_launcher()
    with importing():
        from marble_cli.benchmark.bench import bench as run
    from marble_cli.output import answering

    out = ctx.with_resource(answering())
    report = run(targets, names, overrides, output.absolute())
    if report is None:
        return
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=1), file=out)
        return
    console = Console(file=out)
    for table in report.tables():
        console.print(table, "")
    console.print(f"{output / 'bench.json'}", soft_wrap=True, highlight=False, markup=False)
