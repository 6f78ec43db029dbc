"""Compose the protocol of a benchmark: a file of conf/benchmark, with overrides that its name then admits."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from marble_cli.config.compose import MODULE, check_present, options_of
from marble_cli.config.enums import OdeSolver, RolloutTimes
from marble_cli.config.keys import unknown_key
from marble_cli.config.messages import describe_error, describe_value
from marble_cli.config.overrides import parse
from marble_cli.config.paths import settle_rewards
from marble_cli.config.ranges import GUIDANCE, POSITIVE, SEED, at_least, find_out_of_range, ranged
from marble_cli.config.references import as_tree, secrets
from marble_cli.config.resolution import RESOLUTION
from marble_cli.config.schema import HOST, EvaluationConfig, RewardConfig
from marble_cli.config.typed import split_reward
from marble_cli.errors import ConfigError
from marble_cli.paths import absolute
from marble_cli.plugins import installed
from marble_cli.suggest import nearest

GROUP = "benchmark"
EMPTY = "_benchmark"  # the name of the empty configuration that a protocol is added to
HIDDEN = "(a secret)"
# Keys that say where things are, or how a server is asked. They change no score, so the name ignores them.
PLACES = ("source.root", "batch_size")
REWARD_PLACES = (HOST - {"plugin", "sources", "requires", "frames"}) | {
    *("base_url", "api_key_env", "concurrency", "request_timeout", "attempts", "device"),
}


class Average(Enum):
    """What a score is the mean of."""

    images = "images"
    groups = "groups"


@dataclass
class PromptFilesConfig:
    """The prompt files of a benchmark: on the hub, on GitHub, or below a folder."""

    root: str | None = None
    hub: str | None = None
    github: str | None = None
    revision: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    prompt_key: str = "prompt"
    quoted_as: str | None = None
    collect: str | None = None


@dataclass
class ProtocolConfig:
    """A benchmark: its prompts, how images are drawn and scored, and what the score is."""

    source: PromptFilesConfig = field(default_factory=PromptFilesConfig)
    prompts: int | None = ranged(None, at_least(1))
    group: str | None = None
    average: Average = Average.images
    unit: float = ranged(1.0, POSITIVE)
    images_per_prompt: int = ranged(MISSING, at_least(1))
    resolution: int | str = ranged(MISSING, RESOLUTION)
    steps: int = ranged(MISSING, at_least(1))
    solver: OdeSolver = MISSING
    times: RolloutTimes = MISSING
    guidance_scale: float = ranged(MISSING, GUIDANCE)
    batch_size: int = ranged(MISSING, at_least(1))
    seed: int = ranged(MISSING, SEED)
    rewards: dict[str, RewardConfig] = field(default_factory=dict)


@dataclass
class Root:
    """The key that holds a protocol on the command line."""

    benchmark: ProtocolConfig = field(default_factory=ProtocolConfig)


@dataclass(frozen=True)
class Protocol:
    """A protocol, with the overrides that change it, such as `steps=4`."""

    benchmark: str
    config: ProtocolConfig
    changes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The benchmark's name, followed by what was changed."""
        return f"{self.benchmark} (changed: {', '.join(self.changes)})" if self.changes else self.benchmark

    def evaluation(self) -> EvaluationConfig:
        """Return how the images are drawn."""
        own, keys = vars(self.config), vars(EvaluationConfig())
        return EvaluationConfig(**{key: own[key] for key in keys})

    def rewards(self) -> dict[str, RewardConfig]:
        """Return the rewards as they are built: with absolute paths; the protocol keeps them as written."""
        rewards = {name: replace(reward) for name, reward in self.config.rewards.items()}
        settle_rewards(f"{GROUP}.rewards", rewards, None)
        return rewards

    def to_json(self) -> dict[str, Any]:
        """Return what decides the scores, as JSON holds it."""
        tree = _plain(self.config)
        for key in PLACES:
            _pop(tree, key)
        for reward in tree["rewards"].values():
            for keys in (reward, reward["options"]):
                for key in REWARD_PLACES & keys.keys():
                    del keys[key]
        return {"name": self.name, **tree}


def benchmarks() -> list[str]:
    """Return the names of the protocols."""
    with initialize_config_module(MODULE, version_base=None):
        return options_of(GROUP)


def is_of_benchmark(word: str) -> bool:
    """Tell whether an override concerns the protocols."""
    return word.lstrip("+~").startswith((f"{GROUP}.", f"{GROUP}="))


def compose_protocols(names: Sequence[str], overrides: Sequence[str] = ()) -> list[Protocol]:
    """Compose protocols; each override applies to all of them, and one of a reward to those that have it.

    Raises:
        ConfigError: there is no such protocol, key or reward, or a value is wrong.
    """
    parsed = parse(overrides, Root)
    known = benchmarks()
    for name in names:
        if name not in known:
            raise ConfigError(f"--benchmark {name}: there is no such benchmark{nearest(name, known)}")
    for override in parsed:
        if override.key_or_group == GROUP:
            raise ConfigError(
                f"override {override.input_line!r}: choose benchmarks with --benchmark NAME,..."
            )
        if wrong := unknown_key(override.key_or_group, Root):
            raise ConfigError(f"override {override.input_line!r}: {wrong}")
    plain = [_compose(name, []) for name in names]
    takers = [[override for override in parsed if _concerns(override, one)] for one in plain]
    for override in parsed:
        if not any(override in taken for taken in takers):
            rewards = sorted({reward for one in plain for reward in one.rewards})
            raise ConfigError(
                f"override {override.input_line!r}: no benchmark here has that reward. They have "
                f"{', '.join(rewards)}."
            )
    return [
        _changed(name, one, _compose(name, taken) if taken else one)
        for name, one, taken in zip(names, plain, takers, strict=True)
    ]


def _concerns(override: Override, config: ProtocolConfig) -> bool:
    parts = override.key_or_group.split(".")
    adds = override.is_add() and len(parts) == 3
    return parts[1] != "rewards" or len(parts) == 2 or adds or parts[2] in config.rewards


def _compose(name: str, overrides: Sequence[Override]) -> ProtocolConfig:
    removals = [override for override in overrides if override.is_delete()]
    lines = [_line(override) for override in overrides if override not in removals]
    with initialize_config_module(MODULE, version_base=None):
        ConfigStore.instance().store(EMPTY, {})
        try:
            tree = hydra_compose(EMPTY, [f"+{GROUP}={name}", *lines])
            for override in removals:
                check_present(tree, override)
            if removals:
                lines += [str(override.input_line) for override in removals]
                tree = hydra_compose(EMPTY, [f"+{GROUP}={name}", *lines])
        except HydraException as error:
            raise ConfigError(describe_error(error)) from error
    return _typed(tree[GROUP])


def _line(override: Override) -> str:
    """Return the override as Hydra accepts it for a key that no file names."""
    return f"++{str(override.input_line).lstrip('+')}"


def _typed(tree: DictConfig) -> ProtocolConfig:
    """Convert a protocol's tree to the schema's types, and check it."""
    OmegaConf.set_struct(tree, False)
    try:
        rows = tree.get("rewards") or {}
        if not isinstance(rows, Mapping | DictConfig):
            raise ConfigError(f"{GROUP}.rewards={rows}: expected rewards by name, such as {{ocr: {{}}}}.")
        tree.rewards = {
            name: split_reward(f"{GROUP}.rewards.{name}", row, rows) for name, row in rows.items()
        }
        merged = OmegaConf.merge(OmegaConf.structured(ProtocolConfig), tree)
        if missing := OmegaConf.missing_keys(merged):
            key = f"{GROUP}.{min(missing)}"
            raise ConfigError(f"{key} has no value. Set it: {key}=...")
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(describe_value(error, f"{GROUP}.")) from error
    assert isinstance(config, ProtocolConfig)
    _check(config)
    if config.source.root not in (None, "tiny"):
        config.source.root = str(absolute(f"{GROUP}.source.root=", str(config.source.root)))
    return config


def _check(config: ProtocolConfig) -> None:
    for wrong in find_out_of_range(config, f"{GROUP}."):
        raise ConfigError(f"{wrong.key}={wrong.value}: expected {wrong.expected}.")
    if not config.rewards:
        raise ConfigError(f"{GROUP}.rewards is empty. Expected at least one reward.")
    for name, reward in config.rewards.items():
        in_process = reward.url is None and not reward.isolated
        if in_process and reward.plugin not in (known := installed()):
            raise ConfigError(
                f"{GROUP}.rewards.{name}.plugin={reward.plugin}: no such reward is installed"
                f"{nearest(reward.plugin, known)}"
            )
        if reward.aspects or reward.only_if is not None:
            key = "aspects" if reward.aspects else "only_if"
            raise ConfigError(
                f"{GROUP}.rewards.{name}.{key}: a benchmark scores every image, with one score per reward. "
                "Expected none."
            )


def _changed(name: str, before: ProtocolConfig, config: ProtocolConfig) -> Protocol:
    """Return the protocol with what differs from its file: keys, added rewards and removed ones."""
    both = before.rewards.keys() & config.rewards.keys()
    old, new = (
        dict(
            _flat(
                _plain(replace(part, rewards={key: part.rewards[key] for key in part.rewards if key in both}))
            )
        )
        for part in (before, config)
    )
    changes = [
        *(f"{key}={value}" for key, value in new.items() if old.get(key, ...) != value),
        *(f"~{key}" for key in old if key not in new),
    ]
    added = [f"+rewards.{key}={part.plugin}" for key, part in config.rewards.items() if key not in both]
    removed = [f"~rewards.{key}" for key in before.rewards if key not in both]
    return Protocol(name, config, (*(c for c in changes if not _is_place(c)), *added, *removed))


def _is_place(change: str) -> bool:
    key = change.lstrip("~").partition("=")[0]
    return key in PLACES or (key.startswith("rewards.") and key.split(".")[-1] in REWARD_PLACES)


def _plain(config: ProtocolConfig) -> dict[str, Any]:
    """Return the protocol as a plain tree without secrets."""
    tree = as_tree(config)
    for node, key, _ in list(secrets(tree)):
        node[key] = HIDDEN
    return tree


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}." if key != "options" else prefix)
        else:
            yield f"{prefix}{key}", value


def _pop(tree: dict[str, Any], path: str) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        tree = tree[parent]
    tree.pop(last, None)
