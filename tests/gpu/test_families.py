"""Every family computes on this device what it computes on the CPU, and in half precision nearly the same.

Distances are relative, in norm. In float32 the two devices differ by the order of their sums: a few times
2^-24 per operation. A factor has 8 bits in bfloat16 and 11 in float16, so one operation errs by 2^-9 or
2^-12, and a network by several times that. Gradients err in both directions, and that of the KL term is one
of a difference. On a CPU, half precision is at most 0.026 (bfloat16) and 0.003 (float16) from float32 in
values, 0.085 and 0.02 in gradients, and 0.85 and 0.12 levels in pictures.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from marble_cli.config.enums import Precision
from marble_cli.distributed.layout import Replicated
from marble_cli.distributed.ranks import Ranks
from marble_cli.objective.coefficients import reward_coefficients
from marble_cli.policy.base import PromptEmbeddings
from marble_cli.policy.load import load_policy
from marble_cli.seeds import noise
from marble_cli.step.batches import TrainingSet, chunks
from marble_cli.step.gradients import Gradients, mixture_gradient, reward_gradients
from marble_cli.step.passes import Objective, Step
from tests.policy.conftest import tiny_folder
from tests.policy.families.cases import PROMPTS, Case
from tests.policy.families.conftest import case, edits_folder, small_pictures
from tests.policy.families.pipelines import TINY

__all__ = ["case", "edits_folder", "small_pictures", "tiny_folder"]

IN_BFLOAT16 = ("sana", "lumina2")  # the range of float16 is too small for Sana, and Lumina is not used in it
FAMILIES_IN_FLOAT16 = [family for family in TINY if family not in IN_BFLOAT16]
PAIRS = [
    *((family, Precision.fp32) for family in TINY),
    *((family, Precision.bf16) for family in TINY),
    *((family, Precision.fp16) for family in FAMILIES_IN_FLOAT16),
]


@dataclass(frozen=True)
class Near:
    """The largest distances, and the largest mean difference of pictures in levels of 255."""

    values: float
    gradients: float
    levels: float


NEAR = {
    Precision.fp32: Near(values=1e-5, gradients=1e-4, levels=0.01),
    Precision.bf16: Near(values=0.05, gradients=0.2, levels=2.5),
    Precision.fp16: Near(values=0.01, gradients=0.05, levels=0.4),
}
Z_IMAGE_IN_BFLOAT16 = 0.6  # of gradients, 0.29 on a CPU: its small model's cancel out most


@dataclass(frozen=True)
class Pair:
    """A policy and what it is compared with: in float32 the CPU's, in half precision the device's float32."""

    case: Case
    policy: Any
    expected: Any
    near: Near


@pytest.fixture
def pair(case: Case, precision: Precision, randomise: Callable[..., None]) -> Pair:
    def load(**changes: Any) -> Any:
        policy = load_policy(replace(case.model, **changes), seed=0)
        randomise(policy)
        return policy

    near = NEAR[precision]
    if (case.name, precision) == ("z_image", Precision.bf16):
        near = replace(near, gradients=Z_IMAGE_IN_BFLOAT16)
    if precision is Precision.fp32:
        return Pair(case, case.policy, load(device="cpu"), near)
    return Pair(case, load(precision=precision), case.policy, near)


# Times that bfloat16 holds exactly, times 1000, too. Many transformers round both, as their pipelines do, and
# these small random ones change fast with time, so that rounded times have gradients of another function.
EXACT_TIMES = torch.tensor([0.125, 0.25, 0.5])

every_pair = pytest.mark.parametrize(
    ("case", "precision"),
    PAIRS,
    indirect=["case"],
    ids=[f"{family}-{precision.value}" for family, precision in PAIRS],
)


def distance(got: Tensor, expected: Tensor) -> float:
    assert got.isfinite().all()
    one, other = got.detach().cpu().double(), expected.detach().cpu().double()
    return float((one - other).norm() / other.norm())


@every_pair
def test_embeddings(pair: Pair, device: torch.device) -> None:
    one, other = (pair.case.encode(policy).tensors for policy in (pair.policy, pair.expected))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.device == device
        if tensor.dtype is torch.bool:
            assert torch.equal(tensor.cpu(), other[name].cpu())
        else:
            assert distance(tensor, other[name]) < pair.near.values, name


@every_pair
@torch.no_grad()
def test_velocities_of_all_weights(pair: Pair, device: torch.device) -> None:
    """Trained, behaviour and frozen weights differ in the case, so a wrong adapter would show."""
    xt, found = pair.case.start(), []
    for policy in (pair.policy, pair.expected):
        at = xt.to(policy.device), pair.case.times.to(policy.device), pair.case.encode(policy)
        found.append([policy.velocity(*at, adapter) for adapter in ("trained", "behaviour", None)])
    for one, other in zip(*found, strict=True):
        assert (one.device, one.dtype) == (device, torch.float32)
        assert distance(one, other) < pair.near.values
    assert distance(found[1][0], found[1][1]) > 10 * distance(found[0][0], found[1][0])


@every_pair
def test_decoded_pictures(pair: Pair) -> None:
    x0 = pair.case.start()
    one, other = (policy.decode(x0.to(policy.device))[0].float() for policy in (pair.policy, pair.expected))
    assert other.std() > 5
    assert (one - other).abs().mean() < pair.near.levels


def gradients(policy: Any, prompts: PromptEmbeddings) -> list[Gradients]:
    """Take a refresh's gradients of two rewards and an amortised step's, both with a KL term."""
    draw = torch.Generator().manual_seed(3)
    images = torch.arange(2 * len(PROMPTS))
    x0 = noise(0, "test", 1, images.tolist(), policy.latent_shape).to(policy.device)
    times = EXACT_TIMES[torch.randint(len(EXACT_TIMES), (len(images), 2), generator=draw)]
    embeddings = prompts[(images // 2).to(policy.device)]
    data = TrainingSet(x0, embeddings, images, images, times, samples=times.numel())
    objective = Objective(beta=0.3, clip=0.8, kl_coef=0.5, seed=0, micro_batch_size=4)
    step = Step(policy, Replicated(Ranks.alone()), data, objective, 1, lambda count: None)
    optimality = torch.rand(2, len(images), generator=draw, dtype=torch.float64)
    made = reward_coefficients(optimality, torch.ones(2, len(images), dtype=torch.bool))
    parts = chunks(data, objective.micro_batch_size)
    weights = torch.tensor([0.7, 2.5], dtype=torch.float64)
    return [
        reward_gradients(step, parts, made.rewards, made.shared),
        mixture_gradient(step, parts, made.combined(weights)),
    ]


@every_pair
def test_losses_and_gradients(pair: Pair) -> None:
    found, expected = (gradients(policy, pair.case.encode(policy)) for policy in (pair.policy, pair.expected))
    for one, other in zip(found, expected, strict=True):
        scored = other.losses != 0  # nothing is left outside the balance
        assert distance(one.losses[scored], other.losses[scored]) < pair.near.values
        assert (one.rows.dtype, one.rows.device) == (torch.float32, pair.policy.device)
        for row, exact in zip(one.rows, other.rows, strict=True):
            assert distance(row, exact) < pair.near.gradients
    refresh, amortised = found
    whole = refresh.combined(torch.tensor([0.7, 2.5], dtype=torch.float64))
    assert distance(amortised.rows[0], whole.rows[0]) < pair.near.values
