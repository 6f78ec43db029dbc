"""Write the model card of a published LoRA: metadata for the hub, and a page for people."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from marble_cli import __version__
from marble_cli.config.aspects import by_aspect
from marble_cli.config.enums import Role
from marble_cli.config.evaluation import resolve_evaluation
from marble_cli.config.schema import RewardConfig, RunConfig
from marble_cli.errors import MarbleError
from marble_cli.metrics.samples import KeptSample
from marble_cli.plugins import installed
from marble_cli.push.base_model import BaseModel
from marble_cli.push.loading import EDITING, loading_code, missing_bounds
from marble_cli.report import outcome, settings
from marble_cli.report.elements import MISSING, Table, without_runs
from marble_cli.report.reading import Run
from marble_cli.rewards.api import Declaration
from marble_cli.rewards.registry import load_plugin, origin

EXAMPLE = "a photo of a red cup"  # the prompt of the code, if the run kept no pictures
PAPERS = {  # on arXiv, by balance
    "marble": "2605.06507",
    "mgda": "1810.04650",
    "output_space": "1810.04650",
    "upgrad": "2406.16232",
    "advantage_sum": "2601.05242",
}
MARKS = re.compile(r"([\\`*_\[\]|~#!<>])")


@dataclass(frozen=True)
class Picture:
    """One prompt before and after training, both as files; `steps` are those of the two evaluations."""

    prompt: str
    before: KeptSample
    after: KeptSample
    steps: tuple[int, int]


def write_card(
    repo: str,
    config: RunConfig,
    base: BaseModel,
    family: str,
    step: int,
    run: Run,
    pictures: Sequence[Picture],
    merged: Mapping[str, Any] | None = None,
) -> str:
    """Return the model card of a LoRA in Markdown, with its metadata on top.

    Args:
        repo: the hub id of the LoRA.
        config: of its run.
        base: the model that it belongs to.
        family: the class in `policy.families` of that model.
        step: the last step of its training.
        run: what its run recorded, with the evaluations until `step`.
        pictures: before and after training.
        merged: what `marble merge` made the LoRA from: `method`, names of `loras` and their `weights`.
    """
    prompt = pictures[0].prompt if pictures else EXAMPLE
    evaluation = resolve_evaluation(config)
    last = run.history.held_out[-1]["step"] if run.history.held_out else 0
    card: str = _template().render(
        metadata=_metadata(config, base, family, pictures),
        title=repo.split("/")[-1],
        base=base,
        trained=[name for name, row in by_aspect(config.rewards).items() if row.role is Role.train],
        step=step,
        version=__version__,
        balance=config.balance.name,
        paper=PAPERS.get(config.balance.name),
        code=loading_code(config, family, base, repo, prompt),
        bounds=missing_bounds(config, family),
        evaluation=evaluation,
        buckets=config.data.aspect_ratio_buckets,
        outcome=without_runs(outcome.outcome_table([run])) if last else Table("", [], []),
        evaluated=last,
        joint=[sentence.partition(": ")[2] for sentence in outcome.joint_sentences([run])],
        comparisons=[] if run.evaluation is None else outcome.evaluation_tables(run, run.evaluation),
        pictures=pictures,
        merged=merged,
        zip=zip,
        rewards=_rewards(config),
        settings=settings.overview([run]),
    )
    return card.lstrip()


@cache
def _template() -> Template:
    templates = Environment(
        loader=PackageLoader("marble_cli.push", "templates"), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    templates.filters["cell"] = plain
    return templates.get_template("card.md")


def plain(text: str) -> str:
    """Escape a text so that Markdown and HTML show it as it is, on one line and within one cell."""
    return MARKS.sub(r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def _metadata(config: RunConfig, base: BaseModel, family: str, pictures: Sequence[Picture]) -> str:
    """Return what the hub reads, as YAML."""
    task = "image-to-image" if family in EDITING else "text-to-image"
    task = task if config.model.frames is None else "text-to-video"
    more: dict[str, Any] = dict(base.license)
    if base.id is not None:
        more |= {"base_model": base.id, "base_model_relation": "adapter"}
    if hubs := [s.hub for s in config.data.sources.values() if s.hub and not s.hub.startswith("/")]:
        more["datasets"] = list(dict.fromkeys(hubs))
    if pictures:
        more["widget"] = [
            {"text": picture.prompt, "output": {"url": f"images/{picture.after.file.name}"}}
            for picture in pictures
        ]
    return ModelCardData(
        library_name="diffusers",
        pipeline_tag=task,
        tags=[
            task,
            "diffusers",
            "lora",
            "template:sd-lora",
            "marble",
            *filter(None, [family.lower()]),
        ],
        **more,
    ).to_yaml()


def _rewards(config: RunConfig) -> Table:
    """Tabulate the rewards with their weights and licenses."""
    rows = []
    for group, rewards in (("trained", config.rewards), ("watched", config.eval_rewards)):
        for name, reward in by_aspect(rewards).items():
            role = "guard" if reward.role is Role.guard else group
            weight = f"{reward.weight:g}" if role == "trained" else MISSING
            by, license = _provider(reward)
            rows.append([name, role, weight, by, license])
    return Table("", ["reward", "role", "weight", "plugin", "license"], rows)


def _provider(reward: RewardConfig) -> tuple[str, str]:
    """Return the plugin of a reward with its distribution, and the license that it states."""
    unknown = f"{reward.plugin}, which is not installed where this card was written"
    if reward.plugin not in installed():
        return unknown, MISSING
    try:
        stated = Declaration.of(load_plugin(reward.plugin)).license
    except MarbleError:
        return unknown, MISSING
    return f"{reward.plugin} of {origin(reward.plugin)}", stated or "not stated"
