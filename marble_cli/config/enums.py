"""Choices of configuration keys that take one of a few words."""

from enum import Enum


class Switch(Enum):
    """On, off, or on where it pays. In files and overrides `true` and `false` may be booleans."""

    auto = "auto"
    true = "true"
    false = "false"


class Precision(Enum):
    """Floating-point type of the frozen weights."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Quantization(Enum):
    """Type of the frozen linear layers' weights, if it is not the model's precision."""

    none = "none"
    int8 = "int8"
    fp8 = "fp8"
    nf4 = "nf4"


class Offload(Enum):
    """Frozen weights that are in the CPU's memory while nothing computes with them."""

    none = "none"
    blocks = "blocks"


class Train(Enum):
    """Trained weights: a LoRA, or the whole transformer."""

    lora = "lora"
    full = "full"


class BalanceMode(Enum):
    """When each reward's own gradient is computed, and with respect to what."""

    full = "full"
    amortized = "amortized"
    output_space = "output_space"


class RefreshWhen(Enum):
    """Steps that refresh with `balance.mode=amortized`: regular ones, or when the cache is stale."""

    scheduled = "scheduled"
    stale = "stale"


class Amortize(Enum):
    """Quantity that the cached weights mix between refreshes: losses or advantages."""

    direction = "direction"
    advantage = "advantage"


class SharedTerm(Enum):
    """Place of the reward-independent part of the gradients: in the balance or added after it."""

    inside = "inside"
    outside = "outside"


# Images over which the deviation of an advantage is taken. `global` is a keyword, hence the call.
AdvantageStd = Enum("AdvantageStd", {"global": "global", "group": "group"})


class KlGate(Enum):
    """Images that the KL term acts on: all, or those that only the trained rewards rank high."""

    none = "none"
    watched = "watched"


class KlReference(Enum):
    """Target of the KL term: the frozen model's velocity, or that velocity under guidance."""

    base = "base"
    guided = "guided"


class TrainingNoise(Enum):
    """Images that share their training times and noise: those of a prompt group, or none."""

    group = "group"
    image = "image"


class OdeSolver(Enum):
    """Solver that draws images."""

    euler = "euler"
    dpm2 = "dpm2"


class RolloutTimes(Enum):
    """Spacing of the solver's times."""

    solver = "solver"
    euler = "euler"


class DeadGroups(Enum):
    """Treatment of prompt groups in which no trained reward has signal."""

    keep = "keep"
    drop = "drop"
    redraw = "redraw"


class SelectBy(Enum):
    """Property of an image that makes training on it likelier."""

    signal = "signal"


class TrainingTimes(Enum):
    """Times of the rollout that an image may be trained on."""

    leading = "leading"
    any = "any"


class Role(Enum):
    """Part of a reward in training: it rises, or it only must not fall."""

    train = "train"
    guard = "guard"


class FrameUse(Enum):
    """Frames of a video that a reward of pictures is asked about: each, or one of them."""

    mean = "mean"
    first = "first"
    middle = "middle"


class Reduce(Enum):
    """Reduction over the rewards that apply to an image, in `balance=weighted_sum`."""

    sum = "sum"
    mean = "mean"


class Quotes(Enum):
    """Prompts of a source that must hold quoted text: all, or those with a straight quote."""

    required = "required"
    straight = "straight"


class OptimizerName(Enum):
    """Optimizer of the trained weights: AdamW with moments in float32, or in 8 bits."""

    adamw = "adamw"
    adamw8bit = "adamw8bit"


class DecaySchedule(Enum):
    """Course of the learning rate after its warm-up, or of the KL coefficient."""

    constant = "constant"
    cosine = "cosine"
    linear = "linear"


class BehaviourSchedule(Enum):
    """Schedule by which the behaviour policy follows the trained one."""

    ramp = "ramp"
    flat = "flat"
    hold = "hold"


class OnHacking(Enum):
    """What a run does at a sign of reward hacking: only warn, stop, or go back to the best checkpoint."""

    warn = "warn"
    stop = "stop"
    rollback = "rollback"


class Parallel(Enum):
    """Layout of the transformer over processes: whole copies (DDP) or shards (FSDP2)."""

    ddp = "ddp"
    fsdp = "fsdp"


class WandbMode(Enum):
    """Destination of W&B's metrics: its service, its files, or none."""

    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


class LauncherName(Enum):
    """Program that starts the processes of a run."""

    local = "local"
    slurm = "slurm"
