"""Put the report together: one HTML file with its style, scripts, charts and pictures."""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import vl_convert
from altair.utils.schemapi import debug_mode
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from marble_cli import __version__
from marble_cli.report import balance, charts, curves, faults, gallery, outcome, settings, speed, sweeps
from marble_cli.report.elements import without_runs
from marble_cli.report.reading import Run, read_runs
from marble_cli.sweep.record import Sweep


def report(folders: Sequence[Path]) -> str:
    """Return the HTML of a report about the runs in `folders`, and about the cells of sweeps among these.

    Raises:
        RequestError: a folder holds no run and no sweep, or what it holds is damaged.
    """
    runs, found = sweeps.expand(list({folder.resolve(): folder for folder in folders}.values()))
    return render(read_runs(list({run.resolve(): run for run in runs}.values())), found)


def render(runs: Sequence[Run], swept: Sequence[Sweep] = ()) -> str:
    """Return the HTML of a report about runs that are read, of which some are cells of sweeps."""
    library = _library()
    style, script = (
        files("marble_cli.report").joinpath("templates", name).read_text("utf-8")
        for name in ("report.css", "report.js")
    )
    with debug_mode(False):  # Altair checks every part of a chart several times; a test does, once
        content = _content(runs, swept)
    return _template().render(
        **content,
        tidy=without_runs if len(runs) == 1 else lambda table: table,
        style=style,
        library=library,
        script=script,
        policy=_policy(library, script),
    )


@cache
def _template() -> Template:
    templates = Environment(
        loader=PackageLoader("marble_cli.report", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return templates.get_template("report.html")


@cache
def _library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def _content(runs: Sequence[Run], swept: Sequence[Sweep]) -> dict[str, Any]:
    pictures, unpictured = gallery.pairs(runs)
    changes = outcome.change_chart(runs)
    return {
        "version": __version__,
        "runs": [
            {
                "label": run.label,
                "color": charts.color(i),
                "shape": i,
                "run": run,
                "said": balance.sentences(run),
            }
            for i, run in enumerate(runs)
        ],
        "title": " · ".join(_titles(runs, swept)),
        "cells": [table for sweep in swept for table in sweeps.cell_tables(sweep)],
        "fronts": sweeps.fronts(runs, swept) if swept else None,
        "overview": settings.overview(runs),
        "differences": settings.differences(runs) if len(runs) > 1 else None,
        "whole": [settings.whole(run) for run in runs if run.settings is not None],
        "outcome": outcome.outcome_table(runs),
        "evaluations": [
            table
            for run in runs
            if run.evaluation is not None
            for table in outcome.evaluation_tables(run, run.evaluation)
        ],
        "joint": outcome.joint_sentences(runs),
        "changes": changes,
        "rewards": [curves.held_out_curves(runs), curves.training_curves(runs)],
        "balance": [balance.share_curves(runs), balance.cosine_curves(runs), balance.conflicts(runs)],
        "balance_tables": [balance.balance_table(runs), balance.guard_table(runs)],
        "pareto": curves.pareto_moves(runs),
        "pictures": pictures,
        "unpictured": unpictured,
        "reward_names": outcome.reward_names(runs),
        "speed": speed.speed(runs),
        "faults": faults.fault_table(runs),
        "messages": faults.message_tables(runs),
    }


def _titles(runs: Sequence[Run], swept: Sequence[Sweep]) -> list[str]:
    """Return the names of the sweeps, and the labels of the runs that are no cells of these."""
    cells = {sweep.folder / cell.name for sweep in swept for cell in sweep.cells}
    names = [sweep.folder.resolve().name for sweep in swept]
    return names + [run.label for run in runs if run.folder not in cells]


def _policy(*scripts: str) -> str:
    """Return a content security policy that permits these scripts alone and no request at all.

    Vega compiles its expressions, which takes 'unsafe-eval'.
    """
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hashes} 'unsafe-eval'"
