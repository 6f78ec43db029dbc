"""Refuse a configuration whose types are right and whose values cannot work: ranges, names, combinations."""

from collections.abc import Iterator

from marble_cli.config.aspects import by_aspect, full_name
from marble_cli.config.checks.alarm import check_alarm
from marble_cli.config.checks.balance import check_balance
from marble_cli.config.checks.guards import check_guards
from marble_cli.config.checks.kl import check_kl
from marble_cli.config.checks.launcher import check_launcher
from marble_cli.config.checks.offload import check_offload
from marble_cli.config.checks.placement import check_placement
from marble_cli.config.checks.sharding import check_sharding
from marble_cli.config.checks.sources import check_source
from marble_cli.config.conditions import check_conditions
from marble_cli.config.enums import Quantization, Train
from marble_cli.config.ranges import find_out_of_range
from marble_cli.config.schema import ModelConfig, RewardConfig, RunConfig
from marble_cli.errors import ConfigError
from marble_cli.plugins import installed
from marble_cli.suggest import nearest

# The metric that `trainer.best` follows by default: the mean of the trained rewards' gains.
COMPOSITE, JOINT = "eval/composite", "eval/joint_improvement"


def validate(config: RunConfig) -> None:
    """Refuse what would fail later in the run.

    Raises:
        ConfigError: naming the first key that is wrong, its value and what was expected.
    """
    for wrong in find_out_of_range(config):
        raise ConfigError(f"{wrong.key}={wrong.value}: expected {wrong.expected}.")
    check_launcher(config.launcher)
    _check_source_weights(config)
    if not config.rewards:
        raise ConfigError(f"rewards is empty. Choose some, e.g. rewards=[{','.join(list(installed())[:2])}].")
    for key, reward in _all_rewards(config):
        check_placement(key, reward)
        _check_names(key, reward, config)
    for name, source in config.data.sources.items():
        check_source(f"data.sources.{name}", source)
    _check_best(config)
    if shared := config.rewards.keys() & config.eval_rewards.keys():
        raise ConfigError(
            f"eval_rewards.{min(shared)}: rewards.{min(shared)} has the same name. Expected it under one "
            "of them."
        )
    _check_aspects(config)
    check_conditions(config.rewards, config.eval_rewards)
    check_balance(config.balance)
    check_guards(config)
    check_alarm(config)
    check_kl(config)
    check_sharding(config)
    _check_trained(config.model)
    check_offload(config)


def _all_rewards(config: RunConfig) -> Iterator[tuple[str, RewardConfig]]:
    """Yield the rewards that are trained on and those that are watched, with their dotted keys."""
    for group, rewards in (("rewards", config.rewards), ("eval_rewards", config.eval_rewards)):
        for name, reward in rewards.items():
            yield f"{group}.{name}", reward


def _check_trained(model: ModelConfig) -> None:
    """Check that weights which are trained are not rounded."""
    if model.train is Train.full and model.quantization is not Quantization.none:
        raise ConfigError(
            f"model.quantization={model.quantization.value}: model.train=full trains the weights that it "
            "would round. Expected model.train=lora, or model.quantization=none."
        )


def _check_source_weights(config: RunConfig) -> None:
    weights = [source.weight for source in config.data.sources.values()]
    if not sum(weights) > 0:
        raise ConfigError(f"data.sources={weights}: expected at least one source with a weight above 0.")


def _check_names(key: str, reward: RewardConfig, config: RunConfig) -> None:
    """Check that a reward's plugin is installed, if it runs in this process, and that its sources exist."""
    in_process = reward.url is None and not reward.isolated
    if in_process and reward.plugin not in (known := installed()):
        raise ConfigError(
            f"{key}.plugin={reward.plugin}: no such reward is installed{nearest(reward.plugin, known)}"
        )
    aspects = {f"{key}.aspects.{name}": aspect.sources for name, aspect in reward.aspects.items()}
    for path, sources in {key: reward.sources, **aspects}.items():
        for source in sources or ():
            if source not in config.data.sources:
                raise ConfigError(
                    f"{path}.sources: there is no source {source!r}{nearest(source, config.data.sources)}"
                )


def _check_aspects(config: RunConfig) -> None:
    """Check that no reward has the name of another one's aspect."""
    for key, reward in _all_rewards(config):
        for aspect in reward.aspects:
            name = full_name(key.partition(".")[2], aspect)
            if name in (*config.rewards, *config.eval_rewards):
                raise ConfigError(f"{key}.aspects: a reward has the name {name!r}. Expected another one.")


def _check_best(config: RunConfig) -> None:
    metrics = [
        COMPOSITE,
        JOINT,
        *(f"reward/{name}/mean" for name in by_aspect({**config.rewards, **config.eval_rewards})),
    ]
    best = config.trainer.best
    if best not in metrics:
        raise ConfigError(
            f"trainer.best={best}: evaluations of this run have no such metric{nearest(best, metrics)}"
        )
