"""The descent: refreshes, amortised steps and mixtures against the definition's own gradients, in float64."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from marble_cli.balance.cache import DirectionCache
from marble_cli.balance.constant import Scalarisation, ScalarisedReward
from marble_cli.balance.gram import gram
from marble_cli.balance.marble import LeastNorm
from marble_cli.config.counts import geometry
from marble_cli.config.enums import Reduce, SharedTerm
from marble_cli.config.schema import RunConfig
from marble_cli.errors import BalanceError
from marble_cli.objective.advantages import advantage_sum, advantages, optimality, weighted_sum
from marble_cli.objective.coefficients import Coefficients, advantage_coefficients, reward_coefficients
from marble_cli.step.batches import chunks, split
from marble_cli.step.direction import Alternating, Descent, Direction, Refresh
from marble_cli.step.gradients import mixture_gradient, reward_gradients, velocity_gram
from marble_cli.step.reward_signal import Signal

STEP = 7
NAMES = ["colorfulness", "compressibility", "third", "fourth", "nowhere"]
INSIDE = "balance.shared_term=inside"
CACHE = DirectionCache(
    torch.tensor([0.4, 0.3, 0.2, 0.1, 0.0], dtype=torch.float64),
    torch.tensor([2.0, 0.5, 0.1, 0.3, 0.0], dtype=torch.float64),
)

DescentMaker = Callable[..., Descent]


def direct(
    descent: Descent, case: Any, cache: DirectionCache = CACHE, signal: Signal | None = None
) -> Direction:
    return descent.direct(STEP, signal or case.signal, case.data, cache, lambda count: None)


def silent(signal: Signal) -> Signal:
    """The same step, with no score for any image."""
    return replace(
        signal,
        applicable=torch.zeros_like(signal.applicable),
        advantage=torch.zeros_like(signal.advantage),
        optimality=torch.full_like(signal.optimality, 0.5),
    )


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


def distance(got: Tensor, expected: Tensor) -> float:
    assert got.dtype == torch.float64
    return float((got - expected).norm() / expected.norm())


def rewards_gradients(case: Any, reference: Any, *, outside: bool) -> Tensor:
    """[5, P]: the g_k, or h_k = g_k - c_k; the last reward applies nowhere."""
    signal, rows = case.signal, []
    for k in range(4):
        row = reference.gradient(signal.optimality[k], signal.applicable[k])
        rows.append(row - reference.shared(signal.applicable[k]) if outside else row)
    return torch.stack([*rows, torch.zeros_like(rows[0])])


@pytest.mark.parametrize("shared_term", ["inside", "outside"])
def test_a_refresh_pushes_no_reward_down(
    descent: DescentMaker, case: Any, reference: Any, shared_term: str
) -> None:
    outside = shared_term == "outside"
    direction = direct(descent("balance.mode=full", f"balance.shared_term={shared_term}"), case)
    rows = rewards_gradients(case, reference, outside=outside)
    balanced = direction.gradient - reference.kl
    if outside:
        balanced = balanced - reference.shared(case.signal.applicable.any(0))
    units = rows[:4] / rows[:4].norm(dim=1, keepdim=True)
    cosines = [cosine(balanced, row) for row in rows[:4]]
    assert min(cosines) >= -1e-9
    metrics = direction.metrics
    assert metrics["balance/refresh"] == 1
    assert 0 <= metrics["balance/gap"] <= 1e-10
    alpha = torch.tensor([metrics[f"balance/alpha/{name}"] for name in NAMES[:4]], dtype=torch.float64)
    assert alpha.sum().item() == pytest.approx(1.0)
    assert distance(balanced, rows.norm(dim=1)[:4].mean() * alpha @ units) < 1e-9
    shortest = LeastNorm()(gram(units)).alpha
    torch.testing.assert_close(alpha, shortest, rtol=0, atol=1e-7)
    for k, name in enumerate(NAMES[:4]):
        assert metrics[f"balance/cosine/{name}"] == pytest.approx(cosines[k], abs=1e-9)
        assert metrics[f"balance/grad_norm/{name}"] == pytest.approx(rows[k].norm().item())
    assert metrics["loss/kl"] > 0


def test_a_weighted_sum_would_push_one_down(case: Any, reference: Any) -> None:
    """The case is not one where any direction would do."""
    rows = rewards_gradients(case, reference, outside=True)[:4]
    assert min(cosine(rows.sum(0), row) for row in rows) < 0


@pytest.mark.parametrize("shared_term", ["inside", "outside"])
def test_a_reward_without_images_is_left_out_and_named(
    descent: DescentMaker, case: Any, shared_term: str
) -> None:
    direction = direct(descent("balance.mode=full", f"balance.shared_term={shared_term}"), case)
    assert direction.warnings == ("left out of the balance this step: nowhere",)
    assert not [
        key for key in direction.metrics if key.startswith(("balance/alpha/now", "balance/cosine/now"))
    ]
    assert direction.metrics["balance/grad_norm/nowhere"] == 0.0


@pytest.mark.parametrize("shared_term", ["inside", "outside"])
def test_an_amortised_step_takes_the_cached_weights(
    descent: DescentMaker, case: Any, reference: Any, shared_term: str
) -> None:
    direction = direct(descent(f"balance.shared_term={shared_term}"), case)
    weights = CACHE.direction_weights()
    assert weights is not None
    rows = rewards_gradients(case, reference, outside=shared_term == "outside")
    expected = weights @ rows + reference.kl
    if shared_term == "outside":
        expected = expected + reference.shared(case.signal.applicable.any(0))
    assert distance(direction.gradient, expected) < 1e-10
    assert direction.cache is CACHE
    assert direction.metrics["balance/refresh"] == 0
    assert direction.metrics["balance/alpha/third"] == pytest.approx(0.2)
    assert direction.metrics["balance/weight/third"] == pytest.approx(weights[2].item())


@pytest.mark.parametrize("shared_term", ["inside", "outside"])
def test_after_a_refresh_the_amortised_step_goes_the_same_way(
    descent: DescentMaker, case: Any, shared_term: str
) -> None:
    full = direct(descent("balance.mode=full", f"balance.shared_term={shared_term}"), case, DirectionCache())
    amortised = direct(descent(f"balance.shared_term={shared_term}"), case, full.cache)
    assert distance(amortised.gradient, full.gradient) < 1e-9
    assert amortised.metrics["loss/policy"] == pytest.approx(full.metrics["loss/policy"], rel=1e-9)


def test_the_published_amortisation_goes_elsewhere(descent: DescentMaker, case: Any, reference: Any) -> None:
    exact, published = (
        direct(descent(f"balance.amortize={how}"), case) for how in ("direction", "advantage")
    )
    mixed = (CACHE.alpha[:, None] * case.signal.advantage * case.signal.applicable).sum(0)  # type: ignore[index]
    expected = reference.gradient(optimality(mixed, case.objective.clip), case.signal.applicable.any(0))
    assert distance(published.gradient, expected + reference.kl) < 1e-10
    assert cosine(exact.gradient - reference.kl, published.gradient - reference.kl) < 0.99


@pytest.mark.parametrize("refresh", [True, False])
@pytest.mark.parametrize(
    ("name", "reduce"), [("weighted_sum", "sum"), ("weighted_sum", "mean"), ("advantage_sum", "sum")]
)
def test_mixtures_are_the_gradient_of_one_loss(
    descent: DescentMaker, case: Any, reference: Any, name: str, reduce: str, refresh: bool
) -> None:
    weights = torch.tensor([1.0, 3.0, 0.5, 1.0, 1.0])
    overrides = [f"rewards.{n}.weight={w}" for n, w in zip(NAMES, weights.tolist(), strict=True)]
    mode = "full" if refresh else "amortized"
    overrides += [f"balance={name}", f"balance.mode={mode}", f"balance.reduce={reduce}"]
    direction = direct(descent(*overrides), case)
    signal = case.signal
    if name == "weighted_sum":
        mixed, scored = weighted_sum(
            signal.rewards, signal.applicable, weights, signal.groups, reduce=Reduce(reduce)
        )
        advantage = advantages(mixed, scored, signal.groups)
    else:
        advantage, scored = advantage_sum(signal.advantage, signal.applicable, weights)
    r = optimality(advantage[0], case.objective.clip)
    expected = reference.gradient(r, scored[0])
    assert distance(direction.gradient, expected + reference.kl) < 1e-10
    assert direction.metrics["loss/policy"] == pytest.approx(reference.loss(r, scored[0]).item(), rel=1e-9)
    rows = rewards_gradients(case, reference, outside=False)
    if refresh:
        for k, reward in enumerate(NAMES[:4]):
            assert direction.metrics[f"balance/cosine/{reward}"] == pytest.approx(cosine(expected, rows[k]))


def test_an_unknown_scalarisation_is_refused() -> None:
    with pytest.raises(ValueError, match="weighted_mean"):
        ScalarisedReward(Scalarisation("weighted_mean"), (1.0,) * 5)


@pytest.mark.parametrize(("name", "shares"), [("equal", None), ("fixed", [0.5, 0.2, 0.2, 0.1])])
def test_constant_shares_add_the_gradients_up(
    descent: DescentMaker, case: Any, reference: Any, name: str, shares: list[float] | None
) -> None:
    overrides = ["balance.weights={colorfulness: 5, compressibility: 2, third: 2, fourth: 1, nowhere: 7}"]
    overrides = [*(overrides if shares else []), INSIDE]
    direction = direct(descent(f"balance={name}", "balance.mode=full", *overrides), case)
    rows = rewards_gradients(case, reference, outside=False)[:4]
    expected = torch.tensor(shares or [0.25] * 4, dtype=torch.float64) @ rows
    assert distance(direction.gradient, expected + reference.kl) < 1e-10


@pytest.mark.parametrize("shared_term", ["inside", "outside"])
def test_output_space_balances_velocities_at_every_step(
    descent: DescentMaker, double_policy: Any, case: Any, reference: Any, shared_term: str
) -> None:
    direction = direct(descent("balance=output_space", f"balance.shared_term={shared_term}"), case)
    signal = case.signal
    rewards = reward_coefficients(
        signal.optimality, signal.applicable, shared_term=SharedTerm(shared_term)
    ).rewards
    weights = LeastNorm()(velocity_gram(case.step(double_policy), chunks(case.data, 5), rewards)).weights
    expected = weights @ rewards_gradients(case, reference, outside=shared_term == "outside") + reference.kl
    if shared_term == "outside":
        expected = expected + reference.shared(signal.applicable.any(0))
    assert distance(direction.gradient, expected) < 1e-10
    assert direction.metrics["balance/refresh"] == 1
    assert direction.metrics["balance/gap"] <= 1e-10
    assert direction.cache is CACHE


@pytest.mark.parametrize("shared_term", ["inside", "outside"])
@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.8])
def test_a_share_of_the_micro_batches_chooses_the_weights_of_all(
    descent: DescentMaker, case: Any, reference: Any, fraction: float, shared_term: str
) -> None:
    overrides = (f"balance.refresh_fraction={fraction}", f"balance.shared_term={shared_term}")
    direction = direct(descent("balance.mode=full", *overrides), case)
    weights = [direction.metrics.get(f"balance/weight/{name}", 0.0) for name in NAMES]
    outside = shared_term == "outside"
    expected = torch.tensor(weights, dtype=torch.float64) @ rewards_gradients(
        case, reference, outside=outside
    )
    if outside:
        expected = expected + reference.shared(case.signal.applicable.any(0))
    assert distance(direction.gradient, expected + reference.kl) < 1e-9
    whole = direct(descent("balance.mode=full", f"balance.shared_term={shared_term}"), case)
    assert distance(direction.gradient, whole.gradient) > 1e-3


def test_a_share_that_would_miss_a_reward_is_widened(descent: DescentMaker, case: Any) -> None:
    """The one image of the one chosen micro-batch does not have the fourth reward."""
    applicable = case.signal.applicable.clone()
    applicable[3, 0] = False
    signal = replace(case.signal, applicable=applicable)
    settings = ("balance.mode=full", "trainer.micro_batch_size=1", "balance.refresh_fraction=0.01")
    shared = direct(descent(*settings), case, signal=signal)
    whole = direct(descent("balance.mode=full", "trainer.micro_batch_size=1"), case, signal=signal)
    assert distance(shared.gradient, whole.gradient) < 1e-12
    assert shared.metrics["balance/grad_norm/fourth"] > 0


def test_a_share_of_the_micro_batches_stands_for_the_whole_step(
    descent: DescentMaker, double_policy: Any, case: Any
) -> None:
    """Norms from half of the samples are scaled up to the step's, by each reward's applicable samples."""
    made = descent("balance.mode=full", "balance.refresh_fraction=0.5", "trainer.micro_batch_size=12", INSIDE)
    direction = direct(made, case)
    (chosen,), _ = split(chunks(case.data, 12), 0.5)
    half = replace(case, data=replace(case.data, samples=12))
    rewards = reward_coefficients(case.signal.optimality, case.signal.applicable).rewards
    found = reward_gradients(
        half.step(double_policy), [chosen], rewards, Coefficients(rewards.p[4], rewards.q[4])
    )
    for k, name in enumerate(NAMES):
        assert direction.metrics[f"balance/grad_norm/{name}"] == pytest.approx(found.rows[k].norm().item())


def test_the_published_refresh_takes_the_rest_by_mixed_advantages(
    descent: DescentMaker, double_policy: Any, case: Any
) -> None:
    made = descent("balance.amortize=advantage", "balance.mode=full", "balance.refresh_fraction=0.01", INSIDE)
    direction = direct(made, case)
    chosen, others = split(chunks(case.data, 5), 0.01)
    signal, step = case.signal, case.step(double_policy)
    rewards = reward_coefficients(signal.optimality, signal.applicable).rewards
    nothing = Coefficients(0 * rewards.p[4], 0 * rewards.q[4])
    found = reward_gradients(step, chosen, rewards, nothing).rows
    weights = [direction.metrics.get(f"balance/weight/{name}", 0.0) for name in NAMES]
    mixed = advantage_coefficients(
        direction.cache.alpha, signal.advantage, signal.applicable, case.objective.clip
    )  # type: ignore[arg-type]
    expected = torch.tensor(weights, dtype=torch.float64) @ found[:5] + found[5]
    expected = expected + mixture_gradient(step, others, mixed).rows[0]
    assert distance(direction.gradient, expected) < 1e-10


def test_mixing_advantages_without_any_signal_leaves_the_kl_term(
    descent: DescentMaker, case: Any, reference: Any
) -> None:
    made = descent("balance.amortize=advantage", "balance.refresh_fraction=0.5", "balance.mode=full")
    direction = direct(made, case, DirectionCache(), silent(case.signal))
    assert distance(direction.gradient, reference.kl) < 1e-10
    assert direction.cache.alpha is None


def test_a_refresh_tells_how_stale_the_cache_was(descent: DescentMaker, case: Any, reference: Any) -> None:
    metrics = direct(descent("balance.mode=full", INSIDE), case).metrics
    rows = rewards_gradients(case, reference, outside=False)
    cached = CACHE.direction_weights()
    assert cached is not None
    fresh = torch.tensor([metrics.get(f"balance/weight/{name}", 0.0) for name in NAMES])
    assert metrics["balance/staleness_cosine"] == pytest.approx(cosine(cached @ rows, fresh.double() @ rows))
    assert (
        "balance/staleness_cosine" not in direct(descent("balance.mode=full"), case, DirectionCache()).metrics
    )
    for name, row in zip(NAMES[:4], rows, strict=False):
        assert metrics[f"balance/cached_cosine/{name}"] == pytest.approx(cosine(cached @ rows, row))
    for (a, one), (b, other) in combinations(enumerate(NAMES[:4]), 2):
        assert metrics[f"balance/pairwise_cosine/{one}/{other}"] == pytest.approx(cosine(rows[a], rows[b]))
    pairs = [cosine(rows[a], rows[b]) for a, b in combinations(range(4), 2)]
    assert metrics["balance/conflict_share"] == pytest.approx(sum(c < 0 for c in pairs) / 6)


def test_output_space_looks_at_the_gradients_at_refresh_steps_only(descent: DescentMaker, case: Any) -> None:
    blind = direct(descent("balance=output_space"), case)
    seeing = direct(descent("balance=output_space", "balance.refresh_every=3"), case)
    assert distance(seeing.gradient, blind.gradient) < 1e-10
    assert not [key for key in blind.metrics if "cosine" in key]
    assert [key for key in seeing.metrics if key.startswith("balance/cosine/")]
    assert seeing.metrics["loss/policy"] == pytest.approx(blind.metrics["loss/policy"])


@pytest.mark.parametrize("mode", ["balance.mode=full", "balance.mode=amortized", "balance=output_space"])
@pytest.mark.parametrize("shared_term", ["inside", "outside"])
def test_without_any_score_only_the_kl_term_moves_the_weights(
    descent: DescentMaker, case: Any, reference: Any, mode: str, shared_term: str
) -> None:
    direction = direct(descent(mode, f"balance.shared_term={shared_term}"), case, CACHE, silent(case.signal))
    assert distance(direction.gradient, reference.kl) < 1e-10
    assert direction.cache is CACHE
    assert direction.metrics["loss/policy"] == 0.0


def test_a_gradient_that_is_not_finite_leaves_the_balance(
    descent: DescentMaker, case: Any, reference: Any
) -> None:
    """An infinite optimality stands for a loss that overflowed."""
    spoilt = case.signal.optimality.clone()
    spoilt[1] = torch.inf
    direction = direct(
        descent("balance.mode=full", INSIDE), case, DirectionCache(), replace(case.signal, optimality=spoilt)
    )
    rows = rewards_gradients(case, reference, outside=False)[[0, 2, 3]]
    expected = LeastNorm()(gram(rows)).weights @ rows
    assert distance(direction.gradient, expected + reference.kl) < 1e-9
    assert direction.warnings == ("left out of the balance this step: compressibility, nowhere",)
    assert "balance/alpha/compressibility" not in direction.metrics
    assert math.isfinite(direction.metrics["loss/policy"])


def test_a_balance_that_fails_leaves_the_cache_and_takes_it(
    descent: DescentMaker, case: Any, reference: Any
) -> None:
    def fail(matrix: Tensor) -> Any:
        raise BalanceError("no solver reached the gap")

    made = descent("balance.mode=full", INSIDE, balance=fail)
    direction = direct(made, case)
    weights = CACHE.direction_weights()
    assert weights is not None
    expected = weights @ rewards_gradients(case, reference, outside=False)
    assert distance(direction.gradient, expected + reference.kl) < 1e-10
    assert direction.cache is CACHE
    assert direction.metrics["balance/failed"] == 1
    assert "balance/gap" not in direction.metrics
    assert "no solver reached the gap" in direction.warnings[0]
    with pytest.raises(BalanceError, match="no solver"):
        direct(made, case, DirectionCache())


def schedule(descent: Descent, cache: DirectionCache = CACHE, steps: int = 9) -> list[int]:
    """The steps that refresh."""
    if isinstance(descent.strategy, Refresh):
        return list(range(1, steps + 1))
    assert isinstance(descent.strategy, Alternating)
    chosen = descent.strategy.schedule
    return [step for step in range(1, steps + 1) if chosen.refreshes(step, cache)]


def test_refreshes_come_after_a_warm_up_and_then_in_turn(descent: DescentMaker) -> None:
    def chosen(*overrides: str) -> list[int]:
        return schedule(descent(*overrides))

    assert chosen("balance.refresh_every=4", "balance.warmup=0") == [1, 5, 9]
    assert chosen("balance.refresh_every=4", "balance.warmup=3") == [1, 2, 3, 5, 9]
    assert chosen("balance.refresh_every=1") == list(range(1, 10))
    assert chosen("balance.mode=full") == list(range(1, 10))
    assert chosen("balance.refresh_every=100") == [1]
    assert schedule(descent("balance.refresh_every=4"), DirectionCache()) == list(range(1, 10))
    assert schedule(descent("balance=weighted_sum", "balance.refresh_every=4"), DirectionCache()) == [
        1,
        5,
        9,
    ]


@pytest.mark.parametrize(
    ("overrides", "rewards"),
    [
        (("balance=weighted_sum", "balance.refresh_every=1000", "balance.warmup=0"), 1),
        (("balance.refresh_every=1000", "balance.warmup=0"), 1),
        (("balance.mode=full",), 6),
    ],
)
def test_what_is_communicated(
    descent: DescentMaker,
    case: Any,
    monkeypatch: pytest.MonkeyPatch,
    overrides: tuple[str, ...],
    rewards: int,
) -> None:
    """An amortised step as much as one of a single mixture: a gradient and its losses. A refresh all at once.

    That all passes have succeeded is agreed on, and losses are summed, before any gradient is: NCCL never
    ends where a rank does not take part.
    """
    made = descent(*overrides)
    told: list[object] = []

    @contextmanager
    def raise_together() -> Iterator[None]:
        told.append("passes")
        yield
        told.append("agreed")

    def watched(tensor: Tensor) -> Tensor:
        told.append(tuple(tensor.shape))
        return tensor

    monkeypatch.setattr(made.layout.ranks, "raise_together", raise_together)
    monkeypatch.setattr(made.layout.ranks, "all_reduce", watched)
    direct(made, case)
    size = sum(p.numel() for p in made.policy.parameters("trained").values())
    assert told == ["passes", "agreed", (rewards + 1,), (rewards, size)]


@pytest.mark.parametrize(
    "overrides", [("balance.mode=full",), ("balance.refresh_every=1000", "balance.warmup=0")]
)
def test_a_pass_that_fails_sends_no_gradient(
    descent: DescentMaker, case: Any, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    """In the last micro-batch, in a refresh and in an amortised step."""
    made = descent(*overrides)
    left = len(chunks(case.data, made.objective.micro_batch_size))

    def advance(count: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(
        made.layout.ranks, "all_reduce", lambda tensor: pytest.fail("a sum over ranks was begun")
    )
    with pytest.raises(torch.OutOfMemoryError):
        made.direct(STEP, case.signal, case.data, CACHE, advance)


@pytest.mark.parametrize(
    "overrides",
    [
        ["balance.refresh_every=4", "balance.warmup=0"],
        ["balance.refresh_every=4", "balance.warmup=3"],
        ["balance.mode=full"],
        ["balance=weighted_sum", "balance.refresh_every=3"],
    ],
)
def test_refreshes_are_as_many_as_the_descent_makes(
    run_config: Callable[..., RunConfig], overrides: list[str], descent: Callable[..., Descent]
) -> None:
    known = DirectionCache(torch.ones(5), torch.ones(5))
    strategy = descent(*overrides).strategy
    expected = 20
    if isinstance(strategy, Alternating):
        expected = sum(strategy.schedule.refreshes(step, known) for step in range(1, 21))
    assert geometry(run_config("trainer.steps=20", *overrides)).refresh_steps == expected
