"""`marble bench`: score targets on benchmarks, each by its pinned protocol."""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from marble_cli import DISTRIBUTION
from marble_cli.benchmark.draw import Draw, units
from marble_cli.benchmark.prompts import PromptSet, read_prompts
from marble_cli.benchmark.record import Record
from marble_cli.benchmark.report import BenchReport, Result
from marble_cli.benchmark.score import aggregate
from marble_cli.config.benchmark import GROUP, Protocol, compose_protocols, is_of_benchmark
from marble_cli.config.evaluation import resolve_evaluation
from marble_cli.config.schema import RewardConfig, RunConfig
from marble_cli.distributed.ranks import Ranks
from marble_cli.errors import CheckpointError, ConfigError, RequestError
from marble_cli.evaluate.groups import check_evaluated_groups
from marble_cli.evaluate.score import make_evaluator
from marble_cli.evaluate.target import Models, Target, resolve_target
from marble_cli.files import check_writable
from marble_cli.plan.checks import check_plugins, own_device
from marble_cli.policy.source import count_pictures
from marble_cli.rewards.api import Declaration
from marble_cli.rewards.registry import origin
from marble_cli.rewards.scorer import Scorer, open_scorer

log = logging.getLogger("marble.run")

# Groups of the run's configuration that a protocol replaces, with the key that sets the same in a protocol.
REPLACED = {"evaluation": "benchmark.", "rewards": "benchmark.rewards.", "data": "benchmark.source."}
# Keys of `model` that change no image of a protocol.
IDLE = ("resolution", "clip", "offload", "embedding_cache", "gradient_checkpointing", "device")
LIBRARIES = (DISTRIBUTION, "torch", "diffusers", "transformers")


def bench(
    targets: Sequence[str], names: Sequence[str], overrides: Sequence[str], output: Path
) -> BenchReport | None:
    """Score every target on every benchmark; write bench.json into `output`, and what it is made of.

    The same call goes on where a killed one ended. Processes that a launcher started share the work.

    Returns:
        The report; None in a process that is not the main one.

    Raises:
        RequestError: a target, benchmark or override is wrong, or prompts or weights are missing.
        RewardError: a reward failed on too many images.
    """
    for word in overrides:
        _check_override(word)
    protocols = compose_protocols(names, [word for word in overrides if is_of_benchmark(word)])
    models = Models(
        [word for word in overrides if not is_of_benchmark(word)], [resolve_target(spec) for spec in targets]
    )
    config = models.config
    with Ranks(config.model.device) as ranks, ExitStack() as stack:
        log.disabled = not ranks.is_main
        with ranks.raise_together():
            device = own_device(config.model.device, ranks.world)
            check_writable(output, "--output ")
            if count_pictures(config.model, fetch=True)[0]:
                raise RequestError(
                    f"model.path={config.model.path} starts from a picture, and benchmarks have prompts "
                    "alone. Expected a model that draws from text; marble eval scores edits of pictures."
                )
            sets = [read_prompts(protocol) for protocol in protocols] if ranks.is_main else []
        with ranks.raise_together():
            sets = sets or [read_prompts(protocol) for protocol in protocols]  # now kept here
            rewards, renamed = merge_rewards(protocols)
            keys = {own: f"{GROUP}.rewards.{name}" for names in renamed for name, own in names.items()}
            _check_groupwise(config, protocols, renamed, check_plugins(rewards, keys))
            scorer = stack.enter_context(open_scorer(rewards, str(device), keys=keys))
        progress = stack.enter_context(_progress(ranks.is_main))
        session = Session(models, scorer, ranks, output, progress, device.type)
        records = {}
        for k, target in enumerate(models.targets):  # the outer loop, because a target may need its own model
            for i, (prompts, of) in enumerate(zip(sets, renamed, strict=True)):
                records[i, k] = session.score(target, prompts, of)
        if not ranks.is_main:
            return None
        results = [
            _summarise(target, prompts, records[i, k])
            for i, prompts in enumerate(sets)
            for k, target in enumerate(models.targets)
        ]
        report = BenchReport(_versions(protocols), [part.to_json() for part in sets], results)
        report.write(output)
    return report


def _check_override(word: str) -> None:
    """Refuse an override that a protocol would make idle."""
    key = word.lstrip("+~").partition("=")[0]
    group = key.partition(".")[0].removeprefix("eval_")
    if group in REPLACED:
        raise ConfigError(
            f"override {word!r}: a benchmark's own protocol decides this. Set {REPLACED[group]}KEY=VALUE to "
            "change it; the benchmark's name then says so."
        )


def merge_rewards(protocols: Sequence[Protocol]) -> tuple[dict[str, RewardConfig], list[dict[str, str]]]:
    """Merge the rewards of several protocols, so that equal ones are built once.

    Returns:
        The rewards by a name of their own, and for each protocol its rewards' names among them.
    """
    merged, renamed = dict[str, RewardConfig](), []
    for protocol in protocols:
        names = {}
        for name, reward in protocol.rewards().items():
            own = name if merged.get(name, reward) == reward else f"{protocol.benchmark}-{name}"
            merged[own] = reward
            names[name] = own
        renamed.append(names)
    return merged, renamed


def _check_groupwise(
    config: RunConfig,
    protocols: Sequence[Protocol],
    renamed: Sequence[Mapping[str, str]],
    declarations: Mapping[str, Declaration],
) -> None:
    """Check that rewards which compare the images of a prompt get whole groups."""
    for protocol, names in zip(protocols, renamed, strict=True):
        settings = resolve_evaluation(replace(config, evaluation=protocol.evaluation()))
        groupwise = [name for name, own in names.items() if declarations[own].groupwise]
        with _naming_keys(protocol):
            check_evaluated_groups(settings, groupwise)


@contextmanager
def _naming_keys(protocol: Protocol) -> Iterator[None]:
    """Name the benchmark and its keys in a message about the evaluation that the protocol sets."""
    try:
        yield
    except RequestError as error:
        text = str(error).replace("evaluation.", f"{GROUP}.")
        raise RequestError(f"{GROUP} {protocol.benchmark}: {text}") from error


@dataclass(frozen=True)
class Session:
    """What scores targets on benchmarks.

    Attributes:
        models: hold the targets.
        scorer: has the rewards of all benchmarks.
        ranks: share the images.
        output: the folder that scores are kept in.
        progress: shows a bar per target and benchmark.
        device: the kind of device that draws.
    """

    models: Models
    scorer: Scorer
    ranks: Ranks
    output: Path
    progress: Progress
    device: str

    def score(self, target: Target, prompts: PromptSet, names: dict[str, str]) -> Record:
        """Score what is missing of a target on a benchmark, whose rewards have `names` in the scorer.

        Raises:
            CheckpointError: the base model is not the one that earlier scores are of.
            RewardError: a reward broke its contract, or failed on too many images.
        """
        protocol, ranks = prompts.protocol, self.ranks
        with ranks.raise_together():
            key = _key(self.models.config, target, prompts, self.device)
            record = Record(self.output, protocol.benchmark, key)
        starts = units(len(prompts.prompts), protocol.config)
        missing: list[int] = ranks.broadcast_json(record.missing(starts))
        images = len(prompts.prompts) * protocol.config.images_per_prompt
        task = self.progress.add_task(
            f"{protocol.benchmark}: {target.label}",
            total=images,
            completed=images * (len(starts) - len(missing)) // len(starts),
        )
        config = replace(self.models.config, evaluation=protocol.evaluation())
        with ranks.raise_together():
            policy = self.models.hold(target)
            weights = str(policy.provenance()["weights"])
            if ranks.is_main and record.weights not in (None, weights):
                raise CheckpointError(
                    f"the base model of {target.label} has changed since {record.path} was begun. Expected "
                    "the same files, or another --output."
                )
        if not missing:
            return record
        with ranks.raise_together():
            scorer = self.scorer.only(list(names.values()))
            with _naming_keys(protocol):
                evaluator = make_evaluator(config, policy, scorer, prompts.prompts)
        Draw(evaluator, target.adapter, protocol.config, names, ranks, record).run(
            missing, weights, lambda count: self.progress.advance(task, count)
        )
        return record


def _key(config: RunConfig, target: Target, prompts: PromptSet, device: str) -> dict[str, Any]:
    """Return everything that decides the scores of a target on a benchmark, as JSON holds it."""
    rollout = config.rollout
    return {
        "benchmark": prompts.protocol.to_json(),
        "batch_size": prompts.protocol.config.batch_size,
        "sha256": prompts.sha256,
        "target": target_json(target),
        "guidance": [rollout.cfg_normalization, rollout.cfg_truncation],
        "versions": _versions([prompts.protocol]),
        "device": device,
    }


def target_json(target: Target) -> dict[str, Any]:
    """Return the weights of a target and its model's settings, without paths of this machine."""
    assert target.model is not None
    model = {key: value for key, value in asdict(target.model).items() if key not in IDLE}
    del model["lora"]["init"]
    if target.weights is None:
        del model["train"], model["lora"]
    model |= {
        "path": Path(target.model.path).name if Path(target.model.path).is_absolute() else model["path"]
    }
    plain = {key: getattr(value, "value", value) for key, value in model.items()}
    return {"weights": None if target.weights is None else digest(target.weights), "model": plain}


def digest(weights: dict[str, torch.Tensor]) -> str:
    """Return a SHA-256 of tensors, by name."""
    total = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _versions(protocols: Iterable[Protocol]) -> dict[str, str]:
    plugins = {reward.plugin for protocol in protocols for reward in protocol.config.rewards.values()}
    known = dict(origin(plugin).split(" ") for plugin in sorted(plugins) if origin(plugin))
    return {name: version(name) for name in LIBRARIES} | known


def _summarise(target: Target, prompts: PromptSet, record: Record) -> Result:
    config = prompts.protocol.config
    scores = {reward: record.scores(reward) for reward in config.rewards}
    return Result(
        benchmark=prompts.protocol.name,
        target={"target": target.label, **target_json(target), "base": record.weights},
        rewards={
            reward: aggregate(values, prompts.groups, config.average, config.unit)
            for reward, values in scores.items()
        },
        failed={reward: record.failed(reward) for reward in config.rewards},
        scores=scores,
        seconds=record.seconds,
        grouped=config.average.value == "groups",
    )


def _progress(shown: bool) -> Progress:
    """Return bars on standard error: one per target and benchmark, in images."""
    columns = (TextColumn("{task.description}"), BarColumn(28), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not shown)
