"""The type and range of every configuration key.

The comments of conf/*.yaml document each key once: what it does, its unit, default and when to change it.
A key also has a default here if files need not name it. Resolved files of older runs lack some keys: the
default is then what those runs did.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import MISSING

from marble_cli.config.algorithm import AlgorithmConfig
from marble_cli.config.enums import (
    Amortize,
    BalanceMode,
    DeadGroups,
    DecaySchedule,
    FrameUse,
    LauncherName,
    OdeSolver,
    Offload,
    OptimizerName,
    Precision,
    Quantization,
    Quotes,
    Reduce,
    RefreshWhen,
    Role,
    RolloutTimes,
    SharedTerm,
    Switch,
    Train,
    WandbMode,
)
from marble_cli.config.ranges import (
    BELOW_1,
    GUIDANCE,
    POSITIVE,
    SECONDS,
    SEED,
    SHARE,
    Range,
    at_least,
    ranged,
    text,
    within,
)
from marble_cli.config.resolution import LEAST, RESOLUTION, RESOLUTIONS
from marble_cli.config.trainer import TrainerConfig

BETAS = Range(lambda betas: len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "two numbers in [0, 1)")


def _is_name(name: str) -> bool:
    return name.isprintable() and bool(name.strip())


@dataclass
class Run:
    """Name and folder of a run."""

    name: str = ranged(MISSING, Range(_is_name, "a line of text without control characters"))
    dir: str = ranged(MISSING, text("a folder"))


@dataclass
class LoraConfig:
    """Size, place and start of the LoRA, for `model.train=lora`."""

    rank: int = ranged(MISSING, at_least(1))
    alpha: int = ranged(MISSING, POSITIVE)
    target_modules: list[str] = MISSING
    init: str | None = ranged(None, text("a LoRA's file or folder, a hub id, a run, a checkpoint, or null"))


@dataclass
class ModelConfig:
    """The model: its files, precision and size, and what of it is trained."""

    path: str = ranged(MISSING, text("a folder, a hub id or tiny"))
    revision: str | None = MISSING
    variant: str | None = None
    clip: str = MISSING
    precision: Precision = MISSING
    quantization: Quantization = Quantization.none
    offload: Offload = Offload.none
    resolution: int | str = ranged(MISSING, RESOLUTION)
    width: int | None = ranged(None, at_least(LEAST))
    height: int | None = ranged(None, at_least(LEAST))
    frames: int | None = ranged(None, at_least(1))
    max_sequence_length: int = ranged(MISSING, at_least(0))
    guidance: float | None = ranged(None, at_least(0))
    embedding_cache: str | None = ranged(MISSING, text("a folder or null"))
    gradient_checkpointing: Switch = MISSING
    compile: Switch = MISSING
    device: str = MISSING
    train: Train = Train.lora
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass
class SourceConfig:
    """Prompts of one kind: files below `data.root`, or splits of a dataset of the Hugging Face hub."""

    train: str = MISSING
    test: str = MISSING
    weight: float = ranged(1.0, at_least(0))
    hub: str | None = None
    subset: str | None = None
    revision: str | None = None
    prompt_key: str = "prompt"
    image_key: str | None = "image"
    resolution_key: str | None = "resolution"
    quoted_as: str | None = None
    quotes: Quotes = Quotes.required
    negative_prompt: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class DataConfig:
    """The prompt sources of a run."""

    root: str | None = MISSING
    aspect_ratio_buckets: list[str] | None = field(default=None, metadata=within(RESOLUTIONS))
    sources: dict[str, SourceConfig] = MISSING


@dataclass
class AspectConfig:
    """Keys of one aspect of a reward; null takes the value of the reward's own key."""

    role: Role | None = None
    margin: float | None = ranged(None, BELOW_1)
    weight: float | None = ranged(None, at_least(0))
    sources: list[str] | None = None
    requires: list[str] | None = None
    only_if: str | None = None


@dataclass
class RewardConfig:
    """Keys that marble reads of a reward; every other key of `rewards.<name>` is an option of its plugin."""

    plugin: str = MISSING
    role: Role = Role.train
    margin: float = ranged(0.0, BELOW_1)
    weight: float = ranged(1.0, at_least(0))
    sources: list[str] | None = None
    requires: list[str] = field(default_factory=list)
    aspects: dict[str, AspectConfig] = field(default_factory=dict)
    only_if: str | None = None
    frames: FrameUse = FrameUse.mean
    timeout: float = ranged(60.0, SECONDS)
    retries: int = ranged(2, at_least(0))
    max_failed: float = ranged(0.5, SHARE)
    optional: bool = False
    url: str | None = None
    token_env: str | None = None
    isolated: bool = False
    options: dict[str, Any] = field(default_factory=dict)


# Keys of a reward that are no options of its plugin.
HOST = {key.name for key in fields(RewardConfig)} - {"options"}


@dataclass
class BalanceConfig:
    """Weights of the rewards' gradients, and when each gradient is computed on its own."""

    name: str = MISSING
    mode: BalanceMode = MISSING
    solver: str = MISSING
    refresh_when: RefreshWhen = RefreshWhen.scheduled
    refresh_every: int = ranged(MISSING, at_least(1))
    refresh_fraction: float = ranged(MISSING, Range(lambda share: 0.0 < share <= 1.0, "a number in (0, 1]"))
    warmup: int = ranged(MISSING, at_least(0))
    ema: float = ranged(MISSING, BELOW_1)
    floor: float = ranged(MISSING, SHARE)
    amortize: Amortize = MISSING
    shared_term: SharedTerm = MISSING
    weights: dict[str, float] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)
    priorities: dict[str, float] = field(default_factory=dict, metadata=within(POSITIVE))
    norm_priority: float = ranged(MISSING, Range(lambda power: 0.0 <= power <= 4.0, "a number in [0, 4]"))
    reduce: Reduce = Reduce.sum


@dataclass
class OptimizerConfig:
    """AdamW, its learning rate and gradient clipping."""

    name: OptimizerName = OptimizerName.adamw
    lr: float = ranged(MISSING, POSITIVE)
    schedule: DecaySchedule = DecaySchedule.constant
    warmup: int = ranged(0, at_least(0))
    betas: list[float] = field(default=MISSING, metadata=within(BETAS))
    weight_decay: float = ranged(MISSING, at_least(0))
    epsilon: float = ranged(MISSING, POSITIVE)
    clip_norm: float = ranged(MISSING, POSITIVE)


@dataclass
class RolloutConfig:
    """Number of the images of a step, and how they are drawn."""

    groups: int = ranged(MISSING, at_least(1))
    group_size: int = ranged(MISSING, at_least(2, ": an advantage compares images of the same prompt"))
    steps: int = ranged(MISSING, at_least(1))
    solver: OdeSolver = MISSING
    times: RolloutTimes = RolloutTimes.solver
    guidance_scale: float = ranged(1.0, GUIDANCE)
    cfg_normalization: float = ranged(0.0, at_least(0))
    cfg_truncation: float = ranged(1.0, SHARE)
    dead_groups: DeadGroups = DeadGroups.keep
    batch_size: int = ranged(MISSING, at_least(1))


@dataclass
class EvaluationConfig:
    """Images that are evaluated; null takes the value of the key that `config.evaluation.INHERITS` names."""

    steps: int | None = ranged(None, at_least(1))
    solver: OdeSolver | None = None
    times: RolloutTimes | None = None
    guidance_scale: float | None = ranged(None, GUIDANCE)
    resolution: int | str | None = ranged(None, RESOLUTION)
    batch_size: int | None = ranged(None, at_least(1))
    images_per_prompt: int = ranged(1, at_least(1))
    prompts: int | None = ranged(None, at_least(1))
    seed: int | None = ranged(None, SEED)


@dataclass
class WandbConfig:
    """Weights & Biases."""

    mode: WandbMode = MISSING
    project: str | None = MISSING
    entity: str | None = MISSING


@dataclass
class LoggingConfig:
    """Records of a run besides metrics.jsonl."""

    trackers: list[str] = field(default_factory=lambda: ["wandb"])
    wandb: WandbConfig = field(default_factory=WandbConfig)
    images_every: int = MISSING


@dataclass
class LauncherConfig:
    """Start and restart of a run's processes; the keys after `grace` are for `launcher=slurm`."""

    name: LauncherName = LauncherName.local
    nodes: int = ranged(1, at_least(1))
    nproc: int = ranged(MISSING, at_least(1))
    max_restarts: int = ranged(3, at_least(0))
    grace: float = ranged(600.0, SECONDS)
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    cpus_per_task: int | None = ranged(None, at_least(1, ", or null"))
    memory: str | None = None
    warning: int = ranged(300, Range(lambda seconds: 0 <= seconds < 2**16, "a number from 0 to 65535"))
    requeues: int = ranged(20, at_least(0))
    setup: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class RunConfig:
    """The whole configuration of a run, one dataclass per group."""

    run: Run = field(default_factory=Run)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rewards: dict[str, RewardConfig] = field(default_factory=dict)
    eval_rewards: dict[str, RewardConfig] = field(default_factory=dict)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
