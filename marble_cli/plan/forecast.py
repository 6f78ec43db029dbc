"""What a run would meet hours later: a full disk, a cache that cannot be written, metadata that rewards cannot read."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from marble_cli.config.schema import RewardConfig, RunConfig
from marble_cli.data.prompts import Prompt
from marble_cli.errors import ConfigError, RequestError
from marble_cli.files import check_writable
from marble_cli.plan.checks import trained_on
from marble_cli.policy.base import ModelSize
from marble_cli.policy.source import local_folder
from marble_cli.rewards.api import Declaration
from marble_cli.rewards.applicability import metadata_problem
from marble_cli.rewards.worker import concerns, required

COPIES = (
    5  # of the trained weights in a checkpoint: they, the behaviour's, the average and AdamW's two moments
)
FLOAT32 = 4  # bytes


def checkpoints(config: RunConfig, size: ModelSize, folder: Path) -> str:
    """What the run's checkpoints need on the disk, and whether `folder`, which is there, has the room.

    Raises:
        RequestError: not even one fits.
    """
    trainer = config.trainer
    each = COPIES * FLOAT32 * size.trained
    apart = trainer.steps // trainer.keep_every if trainer.keep_every else 0
    kept = min(trainer.keep_last + 1 + apart, max(1, trainer.steps // trainer.checkpoint_every)) + 1
    free = shutil.disk_usage(folder).free
    if each > free:
        raise RequestError(
            f"run.dir={config.run.dir}: a checkpoint takes about {each:,} bytes, and {free:,} are free there. Free some space, "
            "or choose another folder."
        )
    lacking = (
        ""
        if kept * each <= free
        else ", MORE THAN IS FREE: lower trainer.keep_last or raise trainer.keep_every"
    )
    return f"about {_size(each)} each, {_size(kept * each)} with those that are kept{lacking}"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def fetched_into(config: RunConfig) -> str | None:
    """Where a model that has to be fetched will be kept; None if its files are here or its cache holds them.

    Raises:
        RequestError: that folder cannot be written.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    model = config.model
    if local_folder(model.path) is not None:
        return None
    if isinstance(try_to_load_from_cache(model.path, "model_index.json", revision=model.revision), str):
        return None
    existing = check_writable(Path(HF_HUB_CACHE), "HF_HUB_CACHE=")
    return f"{HF_HUB_CACHE} ({_size(shutil.disk_usage(existing).free)} free)"


def unsound(
    config: RunConfig,
    declarations: Mapping[str, Declaration],
    prompts: Mapping[str, Mapping[str, list[Prompt]]],
) -> Iterator[str]:
    """Say for every reward on how many prompts it will fail, as their metadata is not of the types that it requires.

    Args:
        config: of the run.
        declarations: of all rewards by name.
        prompts: by split, `train` and `test`, and source.

    Raises:
        ConfigError: it fails on all of a split that it applies to.
    """
    trained = trained_on(config, prompts["train"])
    for group, rewards, splits in (
        ("rewards", config.rewards, {"train": trained, "test": prompts["test"]}),
        ("eval_rewards", config.eval_rewards, {"test": prompts["test"]}),
    ):
        for name, reward in rewards.items():
            for split, sources in splits.items():
                yield from _unsound(f"{group}.{name}", reward, declarations[name], split, sources)


def _unsound(
    path: str, reward: RewardConfig, declaration: Declaration, split: str, sources: Mapping[str, list[Prompt]]
) -> Iterator[str]:
    keys = required(reward, declaration)
    asked = [
        prompt
        for source, rows in sources.items()
        for prompt in rows
        if declaration.types and concerns(reward, keys, prompt.metadata, source)
    ]
    bad = [(prompt, said) for prompt in asked if (said := metadata_problem(declaration, prompt.metadata))]
    if not bad:
        return
    prompt, said = bad[0]
    line = (
        f"{path} fails on {len(bad):,} of the {len(asked):,} {split} prompts that it applies to: {said}, the first in "
        f"data.sources.{prompt.source}, {prompt.text[:60]!r}"
    )
    if len(bad) == len(asked):
        raise ConfigError(f"{line}. Mend the prompt files, or leave the reward out: ~{path}")
    yield line
