"""Aggregators of torchjd: independent of the gradients' scale, and with a state that checkpoints keep."""

from typing import Any

import pytest
import torch
from torch import Tensor

from marble_cli.balance import Balance, Stateful, build, cosines, gram
from marble_cli.config import schema
from marble_cli.errors import ConfigError

aggregation = pytest.importorskip("torchjd.aggregation")

SCALES = [1e-12, 1e-9, 1e-6, 1e-3, 1e3, 1e6, 1e9, 1e12]
SCALE_FREE = [
    *((name, {}, 4) for name in ("UPGrad", "DualProj", "MGDA", "AlignedMTL", "IMTLG")),
    ("Krum", {"n_byzantine": 0}, 4),
    ("CAGrad", {"c": 0.5}, 4),
    ("PCD", {"eps": 0.0}, 4),
    # These draw an order of three or more rewards, seeded by the matrix.
    ("PCGrad", {}, 2),
    ("GradVac", {"eps": 0.0}, 2),
]
STATEFUL = ["GradVac", "PCD"]


def balance(name: str, rewards: int, **options: Any) -> Balance:
    config = schema.BalanceConfig(
        f"torchjd:{name}",
        solver="osqp",
        floor=0.0,
        norm_priority=0.0,
        ema=0.7,
        refresh_every=10,
        warmup=1,
        options=options,
    )
    built = build(config, [f"r{k}" for k in range(rewards)], [1.0] * rewards)
    assert isinstance(built, Balance)
    return built


def gradients(seed: int, rewards: int) -> Tensor:
    """[K, 20] float64; of odd seeds, two point apart and one is long."""
    rows = torch.randn(rewards, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if seed % 2:
        rows[1] -= 1.5 * rows[0]
        rows[-1] *= 30.0
    return rows


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("name", "options", "rewards"), SCALE_FREE)
def test_the_scale_of_the_gradients_does_not_matter(
    name: str, options: dict[str, Any], rewards: int, scale: float
) -> None:
    if name == "CAGrad":
        pytest.importorskip("cvxpy")
    for seed in range(6):
        matrix = gram(gradients(seed, rewards))
        plain = balance(name, rewards, **options)(matrix).weights
        scaled = balance(name, rewards, **options)(matrix * scale * scale).weights
        torch.testing.assert_close(scaled, plain, rtol=1e-9, atol=1e-9)


def test_every_aggregator_of_the_package_is_known_to_be_scale_free_or_not() -> None:
    family = aggregation.GramianWeightedAggregator
    kinds = {k for k, v in vars(aggregation).items() if isinstance(v, type) and issubclass(v, family)}
    assert kinds - {family.__name__} == {*(name for name, *_ in SCALE_FREE), "FairGrad"}


def test_upgrad_of_tiny_gradients_is_in_no_rewards_way() -> None:
    """Below a sum of squares of 1e-4 the package alone takes the plain mean."""
    rows = 1e-5 * torch.tensor([[1.0, 0.0, 0.0], [-0.9, 0.5, 0.0], [-0.9, -0.4, 0.3]], dtype=torch.float64)
    matrix = gram(rows)
    assert cosines(matrix, torch.ones(3)).min() < -0.3
    assert cosines(matrix, balance("UPGrad", 3)(matrix).weights).min() > -1e-3


@pytest.mark.parametrize(("name", "options"), [("FairGrad", {"alpha": 1.0}), ("PCD", {})])
@pytest.mark.parametrize("length", [1e-2, 0.75, 75.0])
def test_aggregators_that_depend_on_the_scale_get_the_raw_matrix(
    name: str, options: dict[str, Any], length: float
) -> None:
    """From the first step on: no step before it has left a trace."""
    for seed in range(6):
        matrix = gram(length * torch.nn.functional.normalize(gradients(seed, 4)))
        theirs = getattr(aggregation, name)(**options).gramian_weighting
        ours = balance(name, 4, **options)
        for times in (1.0, 2.0, 0.5):
            torch.testing.assert_close(ours(times * matrix).weights, theirs(times * matrix), rtol=0, atol=0)


def answers(built: Balance, *, silent: int | None = None, seeds: range) -> Tensor:
    """Weights [n, K] of one step after another; one reward may have no gradient."""
    found = []
    for seed in seeds:
        rows = gradients(seed, 3)
        if silent is not None:
            rows[silent] = 0.0
        found.append(built(gram(rows)).weights)
    return torch.stack(found)


@pytest.mark.parametrize("name", STATEFUL)
def test_a_restored_state_answers_as_the_original(name: str) -> None:
    one, other, fresh = (balance(name, 3) for _ in range(3))
    assert isinstance(one, Stateful)
    assert isinstance(other, Stateful)
    for silent in (None, 0, 2):
        answers(one, silent=silent, seeds=range(4))
    answers(other, seeds=range(7))  # is forgotten
    state = {key: tensor.clone() for key, tensor in one.state_dict().items()}
    other.load_state_dict(state)
    for silent in (None, 0, 2):
        left, right, new = (answers(b, silent=silent, seeds=range(4, 8)) for b in (one, other, fresh))
        assert torch.equal(left, right)
        assert not torch.allclose(left, new)
    assert any(not torch.equal(tensor, state[key]) for key, tensor in one.state_dict().items())


@pytest.mark.parametrize("name", STATEFUL)
def test_every_set_of_active_rewards_has_its_own_average(name: str) -> None:
    """The average of all three waits while one reward is left out, and the two others have their own."""
    interrupted, plain = balance(name, 3), balance(name, 3)
    answers(interrupted, seeds=range(3))
    answers(plain, seeds=range(3))
    answers(interrupted, silent=0, seeds=range(3))
    second = answers(interrupted, silent=2, seeds=range(3))
    assert torch.equal(second, answers(balance(name, 3), silent=2, seeds=range(3)))
    assert torch.equal(answers(interrupted, seeds=range(3, 6)), answers(plain, seeds=range(3, 6)))


@pytest.mark.parametrize("name", STATEFUL)
def test_a_state_of_something_else_is_refused(name: str) -> None:
    built = balance(name, 3)
    assert isinstance(built, Stateful)
    answers(built, seeds=range(1))
    state = dict(built.state_dict())
    first = next(iter(state))
    for wrong in (
        {**state, "111.other": torch.zeros(1)},
        {**state, first: torch.zeros(7)},
        {"": torch.zeros(1)},
    ):
        with pytest.raises(RuntimeError):
            built.load_state_dict(wrong)
    assert all(torch.equal(state[key], tensor) for key, tensor in built.state_dict().items())


def test_a_balance_without_memory_has_no_state() -> None:
    assert not any(isinstance(balance(name, 3), Stateful) for name in ("UPGrad", "MGDA", "PCGrad"))


@pytest.mark.parametrize("name", ["GradVac", "PCGrad", "PCD"])
def test_building_an_aggregator_leaves_the_random_state_unchanged(name: str) -> None:
    before = torch.get_rng_state()
    balance(name, 4)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ConfigError):
        balance(name, 4, nonsense=1)
