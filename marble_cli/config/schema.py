"""The types of every configuration key; defaults and their reasons stand in conf/*.yaml."""

from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from omegaconf import MISSING


class Precision(Enum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Train(Enum):
    lora = "lora"
    full = "full"


class BalanceMode(Enum):
    full = "full"
    amortized = "amortized"
    output_space = "output_space"


class Amortize(Enum):
    direction = "direction"
    advantage = "advantage"


class SharedTerm(Enum):
    inside = "inside"
    outside = "outside"


AdvantageStd = Enum("AdvantageStd", {"global": "global", "group": "group"})  # `global` is a keyword


class TrainingNoise(Enum):
    group = "group"
    image = "image"


class OdeSolver(Enum):
    euler = "euler"
    dpm2 = "dpm2"


class RolloutTimes(Enum):
    solver = "solver"
    euler = "euler"


class TrainingTimes(Enum):
    leading = "leading"
    any = "any"


class Reduce(Enum):
    sum = "sum"
    mean = "mean"


class Quotes(Enum):
    required = "required"
    straight = "straight"


class BehaviourSchedule(Enum):
    ramp = "ramp"
    flat = "flat"
    hold = "hold"


class Parallel(Enum):
    ddp = "ddp"
    fsdp = "fsdp"


class WandbMode(Enum):
    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


class LauncherName(Enum):
    local = "local"
    slurm = "slurm"


@dataclass
class Run:
    name: str = MISSING
    dir: str = MISSING


@dataclass
class LoraConfig:
    rank: int = MISSING
    alpha: int = MISSING
    target_modules: list[str] = MISSING


@dataclass
class ModelConfig:
    path: str = MISSING
    revision: str | None = MISSING
    variant: str | None = None  # files of older runs lack it
    clip: str = MISSING
    precision: Precision = MISSING
    resolution: int = MISSING
    max_sequence_length: int = MISSING
    guidance: float | None = None  # files of older runs lack it
    embedding_cache: str | None = MISSING
    gradient_checkpointing: bool = MISSING
    compile: bool = MISSING
    device: str = MISSING
    train: Train = Train.lora  # files of older runs lack it
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass
class SourceConfig:
    """Prompts of one kind: files under `data.root`, or splits of a dataset of the Hugging Face hub."""

    train: str = MISSING
    test: str = MISSING
    weight: float = 1.0  # share of a step's prompts, relative to the other sources
    hub: str | None = None  # dataset id or folder; train and test are then splits such as train[:1000]
    subset: str | None = None  # of the dataset, also called its configuration
    revision: str | None = None  # branch, tag or commit of the dataset
    prompt_key: str = "prompt"  # key or column of the prompt; the others are metadata
    quoted_as: str | None = None  # metadata key for the part of the prompt in double quotes
    quotes: Quotes = Quotes.required  # straight: prompts without a straight double quote go without
    negative_prompt: str | None = None  # of rows without one; used where rollout.guidance_scale is above 1
    metadata: dict[str, Any] = field(default_factory=dict)  # of rows that do not have the key


@dataclass
class DataConfig:
    root: str | None = MISSING
    sources: dict[str, SourceConfig] = MISSING


@dataclass
class RewardConfig:
    """Host keys of one reward; every other key under `rewards.<name>` is an option of its plugin."""

    plugin: str = MISSING
    weight: float = 1.0  # in balances that mix rewards by weight
    sources: list[str] | None = None  # prompt sources that it is asked about; all if None
    requires: list[str] = field(default_factory=list)  # metadata keys, beside those that its plugin requires
    timeout: float = 60.0  # seconds for one call
    retries: int = 2  # further attempts after a failed call
    max_failed: float = 0.5  # share of a step's images that may fail before the run stops
    optional: bool = False  # where its plugin is not installed, go on without it and say so
    url: str | None = None  # of the `marble rewards serve` that serves `plugin`; its options stand there
    token_env: str | None = None  # variable with that server's token; MARBLE_REWARD_TOKEN if None
    isolated: bool = False  # run it in the environment that `marble rewards install` made for it
    options: dict[str, Any] = field(default_factory=dict)


HOST = {field.name for field in fields(RewardConfig)} - {
    "options"
}  # keys of a reward that are no options of its plugin


@dataclass
class AdvantageConfig:
    std: AdvantageStd = MISSING
    clip: float = MISSING


@dataclass
class BehaviourConfig:
    schedule: BehaviourSchedule = MISSING
    rate: float = MISSING
    maximum: float = MISSING
    delay: int = 0  # none, as in runs from before the key


@dataclass
class AlgorithmConfig:
    beta: float = MISSING
    kl_coef: float = MISSING
    training_noise: TrainingNoise = MISSING
    training_times: TrainingTimes = TrainingTimes.leading  # as in runs from before the key
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    behaviour: BehaviourConfig = field(default_factory=BehaviourConfig)


@dataclass
class BalanceConfig:
    name: str = MISSING
    mode: BalanceMode = MISSING
    solver: str = MISSING
    refresh_every: int = MISSING
    refresh_fraction: float = MISSING
    warmup: int = MISSING
    ema: float = MISSING
    floor: float = MISSING
    amortize: Amortize = MISSING
    shared_term: SharedTerm = MISSING
    weights: dict[str, float] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)
    priorities: dict[str, float] = field(default_factory=dict)
    norm_priority: float = MISSING
    reduce: Reduce = Reduce.sum  # as in runs from before the key


@dataclass
class OptimizerConfig:
    lr: float = MISSING
    betas: list[float] = MISSING
    weight_decay: float = MISSING
    epsilon: float = MISSING
    clip_norm: float = MISSING


@dataclass
class RolloutConfig:
    groups: int = MISSING
    group_size: int = MISSING
    steps: int = MISSING
    solver: OdeSolver = MISSING
    times: RolloutTimes = RolloutTimes.solver  # as in runs from before the key
    guidance_scale: float = 1.0  # none, as in runs from before the key
    cfg_normalization: float = 0.0
    cfg_truncation: float = 1.0
    batch_size: int = MISSING


@dataclass
class EvaluationConfig:
    """How evaluations draw; what is None is as in the rollout, as in runs from before these keys."""

    steps: int | None = None
    solver: OdeSolver | None = None
    times: RolloutTimes | None = None
    guidance_scale: float | None = None


@dataclass
class EmaConfig:
    decay: float = MISSING
    warmup: int = MISSING
    offset: int = 0  # none, as in runs from before the key


@dataclass
class FsdpConfig:
    replicas: int = 1
    reshard: bool = True


@dataclass
class TrainerConfig:
    steps: int = MISSING
    seed: int = MISSING
    micro_batch_size: int = MISSING
    timestep_fraction: float = MISSING
    times_per_image: int | None = MISSING
    ema: EmaConfig = field(default_factory=EmaConfig)
    checkpoint_every: int = MISSING
    keep_last: int = MISSING
    keep_every: int = 0  # files of older runs lack this and the next
    best: str = "eval/composite"
    eval_every: int = MISSING
    eval_prompts: int = MISSING
    pending_batches: int = MISSING
    encode_ahead: int = MISSING
    max_skipped: int = MISSING
    parallel: Parallel = Parallel.ddp  # files of older runs lack this and the next
    fsdp: FsdpConfig = field(default_factory=FsdpConfig)


@dataclass
class WandbConfig:
    mode: WandbMode = MISSING
    project: str | None = MISSING
    entity: str | None = MISSING


@dataclass
class LoggingConfig:
    wandb: WandbConfig = field(default_factory=WandbConfig)
    images_every: int = MISSING


@dataclass
class LauncherConfig:
    """Files of older runs hold `nproc` alone; what follows `grace` is of launcher=slurm."""

    name: LauncherName = LauncherName.local
    nodes: int = 1
    nproc: int = MISSING
    max_restarts: int = 3
    grace: float = 600.0
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    cpus_per_task: int | None = None
    memory: str | None = None
    warning: int = 300
    requeues: int = 20
    setup: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class RunConfig:
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
