"""The main rank's shares on all ranks, and weights compared by their bits."""

from dataclasses import dataclass, fields, replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from marble_cli.balance.base import Solution
from marble_cli.balance.marble import LeastNorm
from marble_cli.distributed.layout import Layout
from marble_cli.distributed.ranks import Ranks
from marble_cli.errors import BalanceError, TrainingError
from marble_cli.step.alike import check_alike, digest, solve_once


class Rank(Ranks):
    """One of several, that are gone through one after another: `told` is what the first has said."""

    told: Any = None

    def __init__(self, rank: int, world: int = 2) -> None:
        super().__init__("cpu")
        self.rank, self.world = rank, world

    def all_gather_json(self, own: Any) -> list[Any]:
        return [None] * self.world

    def broadcast_json(self, own: Any) -> Any:
        Rank.told = own if self.is_main else Rank.told
        return Rank.told


@dataclass(frozen=True)
class Held:
    """What `check_alike` asks of a layout; `seen` is what all ranks say."""

    replicas: int
    shard_index: int
    seen: list[dict[str, Any]]

    @property
    def ranks(self) -> "Held":
        return self

    def all_gather_json(self, own: dict[str, Any]) -> list[dict[str, Any]]:
        return self.seen


def seen(*rows: tuple[int, str]) -> list[dict[str, Any]]:
    return [
        {"host": f"node{rank // 2}", "part": part, "digest": digest}
        for rank, (part, digest) in enumerate(rows)
    ]


def gram(draw: int) -> Tensor:
    rows = torch.randn(4, 9, generator=torch.Generator().manual_seed(draw), dtype=torch.float64)
    rows[2] = 0.0
    return rows @ rows.T


@pytest.mark.parametrize("draw", range(4))
def test_the_solution_arrives_to_the_last_bit(draw: int) -> None:
    """Only the main rank solves; the others would round differently."""
    own = solve_once(LeastNorm(), gram(draw), Rank(0))
    other = solve_once(lambda matrix: pytest.fail("solved here, too"), gram(draw), Rank(1))
    for field in fields(Solution):
        mine, theirs = getattr(own, field.name), getattr(other, field.name)
        if isinstance(mine, Tensor):
            assert mine.dtype == theirs.dtype
            assert torch.equal(mine, theirs)
        else:
            assert mine == theirs


def test_a_gap_that_is_none_arrives_too() -> None:
    def constant(matrix: Tensor) -> Solution:
        return replace(LeastNorm()(matrix), gap=float("nan"))

    for rank in (0, 1):
        assert str(solve_once(constant, gram(0), Rank(rank)).gap) == "nan"


def test_a_balance_that_fails_fails_on_all_ranks() -> None:
    def fail(matrix: Tensor) -> Solution:
        raise BalanceError("no solver reached the gap")

    for rank in (0, 1):
        with pytest.raises(BalanceError, match="no solver reached the gap"):
            solve_once(fail, gram(0), Rank(rank))


def test_one_process_solves_as_it_always_did() -> None:
    solution = LeastNorm()(gram(1))
    assert solve_once(lambda matrix: solution, gram(1), Rank(0, world=1)) is solution


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_digest_knows_every_bit_and_name(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(3, 2, generator=draw).to(dtype) for name in "ab"}
    same = {name: tensor.clone() for name, tensor in weights.items()}
    assert digest(weights) == digest(same)
    assert digest(weights) == digest({name: tensor.T.contiguous().T for name, tensor in weights.items()})
    assert digest(weights) != digest({"a": weights["a"], "c": weights["b"]})
    assert digest(weights) != digest({"a": weights["b"], "b": weights["a"]})
    same["b"].view(-1).view(torch.uint8)[-1] ^= 1
    assert digest(weights) != digest(same)
    assert digest({"a": torch.tensor(0.0)}) != digest({"a": torch.tensor(-0.0)})


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(0, "a"), (0, "b")], "process 1 on node0 differ from those of process 0 on node0"),
        (
            [(0, "a"), (0, "a"), (0, "b"), (0, "c")],
            "process 2 on node1 differ from those of process 0 on node0, "
            "process 3 on node1 differ from those of process 0 on node0",
        ),
        (
            [(0, "a"), (1, "b"), (0, "a"), (1, "c")],
            "process 3 on node1 differ from those of process 1 on node0",
        ),
    ],
    ids=["two", "two of four", "the second half of two replicas"],
)
def test_ranks_that_differ_are_named(rows: list[tuple[int, str]], said: str) -> None:
    layout = cast(Layout, Held(2, 0, seen(*rows)))
    with pytest.raises(TrainingError, match=rf"^after step 40 the trained weights of {said}") as caught:
        check_alike({"a": torch.ones(2)}, layout, 40, 30)
    assert "Step 40 is not kept; the checkpoint of step 30 and those before it are." in str(caught.value)
    with pytest.raises(TrainingError, match="Step 4 is not kept; earlier checkpoints are"):
        check_alike({"a": torch.ones(2)}, layout, 4, None)


@pytest.mark.parametrize("rows", [[(0, "a"), (0, "a")], [(0, "a"), (1, "b"), (0, "a"), (1, "b")]])
def test_ranks_that_are_alike_go_on(rows: list[tuple[int, str]]) -> None:
    check_alike({"a": torch.ones(2)}, cast(Layout, Held(2, 0, seen(*rows))), 40, 30)


def test_nothing_is_read_where_nothing_is_held_twice() -> None:
    """One process, and shards without replicas."""
    check_alike(cast(Any, None), cast(Layout, Held(1, 0, [])), 40, 30)
