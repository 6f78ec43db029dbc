"""The page docs/reference/configuration.md: every configuration key, by group."""

from itertools import groupby

from scripts.reference.configuration import Key, keys
from scripts.reference.markdown import MADE, cell, code, table

INTRODUCTION = """# Configuration

Overrides follow Hydra's grammar: `group=choice`, `key.path=value`, `+new.key=value`, `~key`. A wrong
key, choice or type is refused, with the nearest valid one, before any model is loaded. `marble train
--print-config` prints every key of a run.

A string key takes what you wrote, so `run.name=1.10` needs no quotes. Text with brackets or commas for a
key of another type needs quotes of its own: `'rewards.judge.template="How well, 0 to 10?"'`. Paths may
begin with `~`.

The defaults below are those of one choice per group; other choices and presets set other values. Without
an override, `preset=tiny` is chosen, with the settings of the embedded model.
"""
GROUPS = {
    "run": "The run's name and folder.",
    "model": "The pipeline, its precision and memory, and what is trained: a LoRA or all weights. "
    "Choices: `sd3`, `flux`, `flux_kontext`, `flux2`, `flux2_klein`, `chroma`, `qwen_image`, "
    "`qwen_image_edit`, `sana`, `lumina2`, `z_image`, `sdxl`, `sd15`, `tiny`.",
    "data": "Prompts by source. Choices: `tiny`, `files`, `hub`, `paper`, `paper_quotes`. "
    "See [prompts](../how-to/prompts.md).",
    "rewards": "The rewards to train on: `rewards=[ocr,clipscore]`, one file per reward. "
    "Every key that is not listed "
    "is an option of the reward's plugin. See [reward plugins](reward-plugins.md).",
    "eval_rewards": "Rewards that are watched on held-out prompts and not trained on, with "
    "the keys of `rewards`.",
    "algorithm": "DiffusionNFT: loss, KL term, advantages, behaviour policy. See [the "
    "algorithm](../explanation/algorithm.md).",
    "balance": "How the rewards' gradients combine. Choices: `marble`, `marble_adaptive`, "
    "`marble_stepwise`, `mgda`, `upgrad`, `upgrad_adaptive`, `equal`, `fixed`, "
    "`weighted_sum`, `advantage_sum`, `output_space`; `balance.name=torchjd:<Name>`.",
    "optimizer": "AdamW.",
    "rollout": "Prompts and images per step, and how images are drawn.",
    "evaluation": "How evaluations draw images, if not as rollouts do.",
    "trainer": "Length, micro-batches, evaluations, checkpoints, parallelism.",
    "logging": "Trackers and sample pictures. See [log to trackers](../how-to/trackers.md).",
    "launcher": "Processes and machines. Choices: `local`, `slurm`. See [many GPUs](../how-to/cluster.md).",
}


def render() -> str:
    """Return the page."""
    parts = [MADE.format(source="conf/*.yaml"), INTRODUCTION]
    for group, members in groupby(keys(), key=lambda key: key.path.split(".")[0]):
        if group == "eval_rewards":  # its keys are those of rewards
            parts.append(f"\n## eval_rewards\n\n{GROUPS[group]}\n")
            continue
        parts += [f"\n## {group}\n\n{GROUPS[group]}\n\n", _table(list(members))]
    return "".join(parts)


def _table(members: list[Key]) -> str:
    """Return the files of the defaults, and a table of the keys."""
    files = " and ".join(code(f"conf/{file}") for file in dict.fromkeys(key.file for key in members))
    rows = ((code(key.path), cell(key.comment), _values(key), code(key.default)) for key in members)
    return f"Defaults: {files}\n\n" + table(("key", "meaning", "values", "default"), rows)


def _values(key: Key) -> str:
    """Return the type of a key, or its choices, and the range."""
    kind = " ".join(code(choice) for choice in key.choices) or key.type
    return kind + (f"; {cell(key.range)}" if key.range and key.range not in kind else "")
