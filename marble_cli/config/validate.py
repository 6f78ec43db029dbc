"""What types cannot say of a configuration: ranges, names and combinations."""

import math
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from marble_cli.config.schema import (
    BalanceMode,
    LauncherConfig,
    LauncherName,
    Quotes,
    Reduce,
    RewardConfig,
    RunConfig,
    SourceConfig,
)
from marble_cli.errors import ConfigError
from marble_cli.plugins import installed
from marble_cli.suggest import nearest

MIXTURES = ("weighted_sum", "advantage_sum")
PROGRAMMES = ("marble", "mgda", "output_space")
PROMPT_FILES = (".txt", ".jsonl", ".ndjson", ".json", ".parquet")
OPTIONAL = ("hub", "subset", "revision", "quoted_as")  # keys of a prompt source
COMPOSITE = "eval/composite"  # the mean of the trained rewards' gains
SLURM_ONLY = (
    "time",
    "partition",
    "account",
    "cpus_per_task",
    "memory",
    "warning",
    "requeues",
    "setup",
    "extra",
)
OPTION = re.compile(r"(extra\.)?[a-z][a-z_-]*", re.ASCII)  # of sbatch
OPTION_VALUE = re.compile(r"[\w.,:;/@+=*&|!^%\[\]()-]+", re.ASCII)
COUNTED = ("nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "output", "requeue", "signal")
OWN_WEIGHTS = (*PROGRAMMES, "equal")


def validate(config: RunConfig) -> None:
    """Refuse what could only fail later.

    Raises:
        ConfigError: naming the first key that is wrong, its value and what was expected.
    """
    for key, value, good, expected in _ranges(config):
        if not good:
            raise ConfigError(f"{key}={value}: expected {expected}.")
    if not config.rewards:
        raise ConfigError(f"rewards is empty. Choose some, e.g. rewards=[{','.join(list(installed())[:2])}].")
    for group, rewards in (("rewards", config.rewards), ("eval_rewards", config.eval_rewards)):
        for name, reward in rewards.items():
            _check_place(f"{group}.{name}", reward)
            elsewhere = reward.url is not None or reward.isolated
            if not elsewhere and reward.plugin not in (known := installed()):
                raise ConfigError(
                    f"{group}.{name}.plugin={reward.plugin}: no such reward is installed{nearest(reward.plugin, known)}"
                )
            for source in reward.sources or ():
                if source not in config.data.sources:
                    raise ConfigError(
                        f"{group}.{name}.sources: there is no source {source!r}{nearest(source, config.data.sources)}"
                    )
    for name, prompts in config.data.sources.items():
        _check_source(f"data.sources.{name}", prompts)
    judged = [COMPOSITE, *(f"reward/{name}/mean" for name in (*config.rewards, *config.eval_rewards))]
    if config.trainer.best not in judged:
        raise ConfigError(
            f"trainer.best={config.trainer.best}: evaluations of this run have no such figure"
            f"{nearest(config.trainer.best, judged)}"
        )
    if twice := config.rewards.keys() & config.eval_rewards.keys():
        raise ConfigError(
            f"{sorted(twice)[0]} stands under rewards and eval_rewards. Keep it under one of them."
        )
    if config.balance.weights and (
        config.balance.name in OWN_WEIGHTS or config.balance.name.startswith("torchjd:")
    ):
        raise ConfigError(
            f"balance.weights: balance={config.balance.name} finds its own. Expected none, or one of "
            f"balance={', '.join((*MIXTURES, 'fixed'))}."
        )
    if config.balance.options and config.balance.name in (*OWN_WEIGHTS, *MIXTURES, "fixed"):
        raise ConfigError(
            f"balance.options: balance={config.balance.name} takes none. Expected them with balance=torchjd:<Name>."
        )
    if config.balance.reduce is not Reduce.sum and config.balance.name != "weighted_sum":
        raise ConfigError(
            f"balance.reduce={config.balance.reduce.value}: balance={config.balance.name} does not mix raw "
            "rewards. Expected it with balance=weighted_sum."
        )
    for key in ("groups", "priorities"):
        if getattr(config.balance, key) and config.balance.name not in PROGRAMMES:
            raise ConfigError(
                f"balance.{key}: balance={config.balance.name} solves no programme that they could enter. Expected "
                f"none, or one of balance={', '.join(PROGRAMMES)}."
            )
    if config.balance.name in MIXTURES and config.balance.mode is BalanceMode.output_space:
        raise ConfigError(
            f"balance.mode=output_space: balance={config.balance.name} mixes the rewards before there is a gradient. "
            "Expected mode full or amortized, or balance=output_space."
        )


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        usable = parts.port != 0  # reading it, a port that is none raises
    except ValueError:
        return False
    bare = not (parts.username or parts.password or parts.query)
    return usable and bare and parts.scheme in ("http", "https") and bool(parts.hostname)


def _check_place(key: str, reward: RewardConfig) -> None:
    """A reward lives in this process, at a url or in an isolated environment, and its options live with it."""
    if reward.url is None:
        if reward.token_env is not None:
            raise ConfigError(
                f"{key}.token_env={reward.token_env}: there is no {key}.url that it belongs to."
            )
        return
    if not _is_address(reward.url):
        raise ConfigError(
            f"{key}.url={reward.url}: expected http://HOST:PORT or https://HOST:PORT, as `marble rewards serve` prints "
            "it; a token stands in the environment."
        )
    if reward.isolated:
        raise ConfigError(f"{key} has a url and isolated=true. Expected one of them.")
    if reward.options:
        option = next(iter(reward.options))
        out = " ".join(f"'~{key}.{name}'" for name in reward.options)
        raise ConfigError(
            f"{key}.{option}: the options of a reward with a url belong to its server: marble rewards serve "
            f"{reward.plugin} rewards.{reward.plugin}.{option}=... Leave out here what stands there: {out}"
        )


def _check_source(path: str, source: SourceConfig) -> None:
    """Keys of a prompt source that contradict each other.

    Raises:
        ConfigError: naming the key and what was expected.
    """
    for key in ("train", "test", "hub", "subset", "revision", "prompt_key", "quoted_as"):
        value = getattr(source, key)
        if value is not None and not value.strip():
            raise ConfigError(
                f"{path}.{key} is empty. Expected a name{', or null' if key in OPTIONAL else ''}."
            )
    if source.hub is None:
        for key in ("subset", "revision"):
            if getattr(source, key) is not None:
                raise ConfigError(
                    f"{path}.{key}={getattr(source, key)}: files have none. Expected it beside {path}.hub=OWNER/NAME."
                )
        for key in ("train", "test"):
            file = getattr(source, key)
            if not file.lower().endswith(PROMPT_FILES):
                raise ConfigError(
                    f"{path}.{key}={file}: expected a file that ends in {', '.join(PROMPT_FILES)}; for a dataset of "
                    f"the hub, {path}.hub=OWNER/NAME."
                )
            if file.lower().endswith(".txt") and source.prompt_key != "prompt":
                raise ConfigError(
                    f"{path}.prompt_key={source.prompt_key}: {file} is plain text, which has no keys. Expected none."
                )
    for taken in (source.prompt_key, "negative_prompt", source.quoted_as):
        if taken in source.metadata:
            raise ConfigError(
                f"{path}.metadata.{taken}: {path} says already where {taken!r} comes from. Expected another key."
            )
    if source.quotes is not Quotes.required and source.quoted_as is None:
        raise ConfigError(
            f"{path}.quotes={source.quotes.value}: nothing asks for what is in quotes. Expected "
            f"{path}.quoted_as beside it, e.g. text."
        )
    if source.quoted_as in (source.prompt_key, "negative_prompt"):
        raise ConfigError(f"{path}.quoted_as={source.quoted_as}: expected a key of metadata, such as text.")


def _launcher(launcher: LauncherConfig) -> Iterator[tuple[str, object, bool, str]]:
    """As `_ranges`: what a launcher starts, and words that a line of sbatch's options can hold."""
    for key, low in (("nodes", 1), ("nproc", 1), ("max_restarts", 0), ("requeues", 0)):
        value = getattr(launcher, key)
        yield f"launcher.{key}", value, value >= low, f"at least {low}"
    yield "launcher.grace", launcher.grace, 0 < launcher.grace < math.inf, "a number above 0"
    yield "launcher.warning", launcher.warning, 0 <= launcher.warning < 2**16, "a number from 0 to 65535"
    cpus = launcher.cpus_per_task
    yield "launcher.cpus_per_task", cpus, cpus is None or cpus >= 1, "at least 1, or null"
    time = launcher.time  # YAML makes 43200 of 12:00:00, which would be minutes
    yield (
        "launcher.time",
        time,
        time is None or not time.isdigit(),
        "hours:minutes:seconds or days-hours, in quotes",
    )
    words = {key: getattr(launcher, key) for key in ("time", "partition", "account", "memory")}
    words |= {f"extra.{key}": value for key, value in launcher.extra.items()}
    for key, value in words.items():
        good = value is None or bool(OPTION_VALUE.fullmatch(str(value)))
        yield f"launcher.{key}", repr(value), good, "letters, digits and signs without blanks or quotes"
        yield (
            f"launcher.{key}",
            repr(value),
            bool(OPTION.fullmatch(key)),
            "an option's long name, e.g. extra.qos",
        )
    for key in launcher.extra:
        name = str(key).replace("_", "-")
        yield (
            f"launcher.extra.{key}",
            launcher.extra[key],
            name not in COUNTED,
            f"no {name}, which the script itself counts on",
        )
    for line in launcher.setup:
        yield "launcher.setup", repr(line), "\n" not in line, "a list of single lines"
    if launcher.name is LauncherName.local:
        for key in SLURM_ONLY:
            value = getattr(launcher, key)
            unset = value == getattr(LauncherConfig(nproc=1), key)
            yield f"launcher.{key}", value, unset, "launcher=slurm beside it"


def _ranges(config: RunConfig) -> Iterator[tuple[str, object, bool, str]]:
    """(key, value, whether it is in range, what was expected)."""

    def at_least(key: str, value: float, low: float) -> tuple[str, object, bool, str]:
        return key, value, low <= value < math.inf, f"at least {low:g}"

    def share(key: str, value: float, *, one: bool) -> tuple[str, object, bool, str]:
        return (
            key,
            value,
            value >= 0.0 and (value <= 1.0 if one else value < 1.0),
            ("a number in [0, 1]" if one else "a number in [0, 1)"),
        )

    def guidance(key: str, value: float) -> tuple[str, object, bool, str]:
        return key, value, value == 0 or 1 <= value < math.inf, "0 or at least 1; both 0 and 1 are none"

    def positive(key: str, value: float) -> tuple[str, object, bool, str]:
        return key, value, 0.0 < value < math.inf, "a number above 0"

    rollout, trainer, balance, algorithm = config.rollout, config.trainer, config.balance, config.algorithm
    yield "trainer.seed", trainer.seed, 0 <= trainer.seed < 2**63, "a number from 0 to 2^63 - 1"
    yield "run.dir", repr(config.run.dir), bool(config.run.dir.strip()), "a folder"
    name = config.run.name
    yield "run.name", repr(name), name.isprintable(), "one line without control characters"
    for name in ("groups", "steps", "batch_size"):
        yield at_least(f"rollout.{name}", getattr(rollout, name), 1)
    yield (
        "rollout.group_size",
        rollout.group_size,
        rollout.group_size >= 2,
        ("at least 2: an advantage compares images of the same prompt"),
    )
    yield guidance("rollout.guidance_scale", rollout.guidance_scale)
    yield at_least("rollout.cfg_normalization", rollout.cfg_normalization, 0)
    yield share("rollout.cfg_truncation", rollout.cfg_truncation, one=True)
    if (steps := config.evaluation.steps) is not None:
        yield at_least("evaluation.steps", steps, 1)
    if (scale := config.evaluation.guidance_scale) is not None:
        yield guidance("evaluation.guidance_scale", scale)
    for name in (
        "micro_batch_size", "checkpoint_every", "keep_last", "eval_prompts", "encode_ahead", "pending_batches",
    ):  # fmt: skip
        yield at_least(f"trainer.{name}", getattr(trainer, name), 1)
    for name in ("steps", "eval_every", "keep_every", "max_skipped"):
        yield at_least(f"trainer.{name}", getattr(trainer, name), 0)
    yield share("trainer.timestep_fraction", trainer.timestep_fraction, one=True)
    yield share("trainer.ema.decay", trainer.ema.decay, one=False)
    yield at_least("trainer.ema.warmup", trainer.ema.warmup, 0)
    yield at_least("trainer.ema.offset", trainer.ema.offset, 0)
    if trainer.times_per_image is not None:
        yield at_least("trainer.times_per_image", trainer.times_per_image, 1)
    yield at_least("balance.refresh_every", balance.refresh_every, 1)
    yield at_least("balance.warmup", balance.warmup, 0)
    yield share("balance.ema", balance.ema, one=False)
    fraction = balance.refresh_fraction
    yield "balance.refresh_fraction", fraction, 0.0 < fraction <= 1.0, "a number in (0, 1]"
    yield share("balance.floor", balance.floor, one=True)
    x = balance.norm_priority
    yield "balance.norm_priority", x, 0.0 <= x <= 4.0, "a number in [0, 4]"
    for name, priority in balance.priorities.items():
        yield positive(f"balance.priorities.{name}", priority)
    yield positive("algorithm.beta", algorithm.beta)
    yield positive("algorithm.advantage.clip", algorithm.advantage.clip)
    yield at_least("algorithm.kl_coef", algorithm.kl_coef, 0)
    yield share("algorithm.behaviour.maximum", algorithm.behaviour.maximum, one=True)
    yield at_least("algorithm.behaviour.rate", algorithm.behaviour.rate, 0)
    yield at_least("algorithm.behaviour.delay", algorithm.behaviour.delay, 0)
    yield positive("optimizer.lr", config.optimizer.lr)
    yield positive("optimizer.epsilon", config.optimizer.epsilon)
    yield positive("optimizer.clip_norm", config.optimizer.clip_norm)
    yield at_least("optimizer.weight_decay", config.optimizer.weight_decay, 0)
    betas = config.optimizer.betas
    yield (
        "optimizer.betas",
        betas,
        len(betas) == 2 and all(0 <= b < 1 for b in betas),
        "two numbers in [0, 1)",
    )
    yield at_least("model.resolution", config.model.resolution, 8)
    yield at_least("model.max_sequence_length", config.model.max_sequence_length, 0)
    if config.model.guidance is not None:
        yield at_least("model.guidance", config.model.guidance, 0)
    yield "model.path", repr(config.model.path), bool(config.model.path.strip()), "a folder, a hub id or tiny"
    cache = config.model.embedding_cache
    yield "model.embedding_cache", repr(cache), cache is None or bool(cache.strip()), "a folder or null"
    yield at_least("model.lora.rank", config.model.lora.rank, 1)
    yield positive("model.lora.alpha", config.model.lora.alpha)
    yield at_least("trainer.fsdp.replicas", trainer.fsdp.replicas, 1)
    yield from _launcher(config.launcher)
    for name, source in config.data.sources.items():
        yield at_least(f"data.sources.{name}.weight", source.weight, 0)
    weights = [source.weight for source in config.data.sources.values()]
    yield "data.sources", weights, sum(weights) > 0, "at least one source with a weight above 0"
    for group, rewards in (("rewards", config.rewards), ("eval_rewards", config.eval_rewards)):
        for name, reward in rewards.items():
            yield at_least(f"{group}.{name}.weight", reward.weight, 0)
            yield positive(f"{group}.{name}.timeout", reward.timeout)
            yield at_least(f"{group}.{name}.retries", reward.retries, 0)
            yield share(f"{group}.{name}.max_failed", reward.max_failed, one=True)
