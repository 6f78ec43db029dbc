"""Foresee failures hours into a run: a full disk, a read-only cache, metadata that rewards cannot read."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from marble_cli.config.aspects import key_of
from marble_cli.config.enums import Train
from marble_cli.config.schema import ModelConfig, RewardConfig, RunConfig
from marble_cli.data.prompts import Prompt
from marble_cli.errors import ConfigError, RequestError
from marble_cli.files import check_writable
from marble_cli.plan.checks import trained_on, with_declarations
from marble_cli.plan.memory import FLOAT32, MOMENTS, copy_fits, describe_bytes
from marble_cli.policy.model_size import ModelSize
from marble_cli.policy.source import local_folder
from marble_cli.rewards.api import Declaration
from marble_cli.rewards.applicability import metadata_problem
from marble_cli.rewards.worker import concerns, required

# Copies of the trained weights in a checkpoint, besides the moments: trained, behaviour, moving average.
COPIES = 3


def checkpoints(config: RunConfig, size: ModelSize, folder: Path) -> str:
    """Describe the disk space that the run's checkpoints need, beside that free in an existing `folder`.

    Raises:
        RequestError: not even one checkpoint fits.
    """
    trainer = config.trainer
    each = round((COPIES * FLOAT32 + MOMENTS[config.optimizer.name]) * size.trained)
    kept_for_good = trainer.steps // trainer.keep_every if trainer.keep_every else 0
    written = max(1, trainer.steps // trainer.checkpoint_every)
    kept = min(trainer.keep_last + 1 + kept_for_good, written) + 1
    free = shutil.disk_usage(folder).free
    if each > free:
        raise RequestError(
            f"run.dir={config.run.dir}: a checkpoint takes about {each:,} bytes, and {free:,} are free "
            "there. Free some space, or choose another folder."
        )
    rarer = " or raise trainer.keep_every" if trainer.keep_every else ""
    warning = f", MORE THAN IS FREE: lower trainer.keep_last{rarer}"
    return (
        f"about {describe_bytes(each)} each, {describe_bytes(kept * each)} with those that are kept"
        f"{warning if kept * each > free else ''}{_written(config, each)}"
    )


def _written(config: RunConfig, size: int) -> str:
    """Describe how a checkpoint of whole transformers is written, by the memory of this machine."""
    if config.model.train is Train.lora:
        return ""
    if copy_fits(size):
        return f"; written beside training, from a copy of {describe_bytes(size)} in the CPU's memory"
    return f"; training waits for each: the CPU's memory has no room for a copy of {describe_bytes(size)}"


def fetched_into(model: ModelConfig) -> str | None:
    """Return the folder that the model will be downloaded into, None if its files are on this machine.

    Raises:
        RequestError: this folder cannot be written.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    if local_folder(model.path) is not None:
        return None
    if isinstance(try_to_load_from_cache(model.path, "model_index.json", revision=model.revision), str):
        return None
    existing = check_writable(Path(HF_HUB_CACHE), "HF_HUB_CACHE=")
    return f"{HF_HUB_CACHE} ({describe_bytes(shutil.disk_usage(existing).free)} free)"


def unsound(
    config: RunConfig,
    declarations: Mapping[str, Declaration],
    prompts: Mapping[str, Mapping[str, list[Prompt]]],
) -> Iterator[str]:
    """Warn of rewards that will fail on prompts whose metadata has other types than they require.

    Args:
        config: the run's configuration.
        declarations: declarations of all rewards, by name.
        prompts: prompts by split, `train` and `test`, and by source.

    Yields:
        One line per reward and split, with the number of prompts and the first of them.

    Raises:
        ConfigError: a reward fails on all prompts of a split that it applies to.
    """
    trained = trained_on(config.data.sources, prompts["train"])
    for group, rewards, splits in (
        ("rewards", config.rewards, {"train": trained, "test": prompts["test"]}),
        ("eval_rewards", config.eval_rewards, {"test": prompts["test"]}),
    ):
        for name, reward, declaration in with_declarations(rewards, declarations):
            for split, sources in splits.items():
                yield from _unsound(key_of(group, name), reward, declaration, split, sources)


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
    problems = [
        (prompt, problem) for prompt in asked if (problem := metadata_problem(declaration, prompt.metadata))
    ]
    if not problems:
        return
    prompt, problem = problems[0]
    line = (
        f"{path} fails on {len(problems):,} of the {len(asked):,} {split} prompts that it applies to: "
        f"{problem}, the first in data.sources.{prompt.source}, {prompt.text[:60]!r}"
    )
    if len(problems) == len(asked):
        raise ConfigError(f"{line}. Mend the prompt files, or leave the reward out: ~{path}")
    yield line
