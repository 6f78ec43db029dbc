"""Names to balances: every built-in, the torchjd door, plugins, and what is refused."""

import builtins
import sys
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch

from marble_cli.balance import Balance, build, cosines, gram, names, registry
from marble_cli.balance.constant import ScalarisedReward
from marble_cli.balance.groups import RewardGroup
from marble_cli.balance.marble import LeastNorm
from marble_cli.config import schema
from marble_cli.errors import BalanceError, ConfigError

REWARDS = ("ocr", "clipscore", "objects")
GRADIENTS = torch.randn(3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def config(name: str = "marble", **changes: Any) -> schema.BalanceConfig:
    values: dict[str, Any] = {
        "solver": "osqp",
        "floor": 0.0,
        "norm_priority": 0.0,
        "ema": 0.7,
        "refresh_every": 10,
        "warmup": 1,
    }
    return schema.BalanceConfig(name=name, **{**values, **changes})


def test_the_built_in_balances_are_these() -> None:
    assert set(names()) >= {
        "marble",
        "mgda",
        "upgrad",
        "equal",
        "fixed",
        "output_space",
        "weighted_sum",
        "advantage_sum",
    }


@pytest.mark.parametrize("name", ["marble", "mgda", "equal", "fixed", "output_space"])
def test_gradient_balances_answer_for_all_rewards(name: str) -> None:
    balance = build(config(name), REWARDS, (1.0,) * 3)
    assert isinstance(balance, Balance)
    spoilt = GRADIENTS.clone()
    spoilt[1] = torch.nan
    for gradients, active in ((GRADIENTS, [True] * 3), (spoilt, [True, False, True])):
        solution = balance(gram(gradients))
        assert solution.active.tolist() == active
        assert solution.alpha.sum().item() == pytest.approx(1.0, abs=1e-12)
        combined = solution.weights @ torch.where(solution.active[:, None], gradients, 0.0)
        expected = torch.cosine_similarity(combined[None], gradients)
        along = cosines(gram(gradients), solution.weights)
        torch.testing.assert_close(along, expected, equal_nan=True)


@pytest.mark.parametrize("name", ["weighted_sum", "advantage_sum"])
def test_mixtures_stand_for_one_gradient(name: str) -> None:
    balance = build(config(name), REWARDS, (2.0, 1.0, 1.0))
    assert isinstance(balance, ScalarisedReward)
    assert (balance.kind, balance.weights) == (name, (2.0, 1.0, 1.0))


def test_equal_and_fixed_shares_are_constant() -> None:
    assert build(config("equal"), REWARDS, (9.0, 1.0, 1.0))(gram(GRADIENTS)).weights.tolist() == [1 / 3] * 3
    balance = build(config("fixed", weights={"objects": 5.0}), REWARDS, (3.0, 2.0, 1.0))
    assert balance(gram(GRADIENTS)).weights.tolist() == [0.3, 0.2, 0.5]


def test_options_reach_the_qp() -> None:
    assert build(config(floor=0.2, solver="active_set"), REWARDS, (1.0,) * 3) == LeastNorm(
        True, 0.2, "active_set"
    )
    assert build(config("mgda"), REWARDS, (1.0,) * 3) == LeastNorm(False, 0.0, "osqp")
    grouped = config(groups={"general": ["objects", "ocr"]}, priorities={"general": 2.0, "clipscore": 0.5})
    assert build(grouped, REWARDS, (1.0,) * 3) == LeastNorm(
        groups=(RewardGroup((0, 2), 2.0), RewardGroup((1,), 0.5))
    )
    assert build(config(priorities={"objects": 3.0}), REWARDS, (1.0,) * 3) == LeastNorm(
        groups=(RewardGroup((0,)), RewardGroup((1,)), RewardGroup((2,), 3.0))
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "marbel"}, r"did you mean 'marble'.*weighted_sum.*torchjd:"),
        ({"solver": "ospq"}, r"balance\.solver.*did you mean 'osqp'"),
        ({"floor": 0.34}, r"balance\.floor=0\.34: 3 rewards.*0\.333"),
        ({"floor": -0.1}, r"balance\.floor"),
        ({"floor": float("nan")}, r"balance\.floor"),
        ({"name": "fixed", "weights": {"orc": 1.0}}, r"balance\.weights.*'orc'.*did you mean 'ocr'"),
        ({"name": "fixed", "weights": {"ocr": -1.0}}, r"ocr=-1\.0"),
        ({"name": "weighted_sum", "weights": dict.fromkeys(REWARDS, 0.0)}, "all 3 are zero"),
        ({"name": "fixed", "weights": dict.fromkeys(REWARDS, 1e308)}, r"add up to more .* largest, 1e\+308"),
        ({"groups": {"a": ["orc"]}}, r"balance\.groups\.a.*'orc'.*did you mean 'ocr'"),
        ({"groups": {"a": ["ocr"], "b": ["objects", "ocr"]}}, r"balance\.groups\.b: ocr is in a"),
        ({"groups": {"a": ["ocr", "ocr"]}}, r"balance\.groups\.a: ocr is in a"),
        ({"groups": {"a": []}}, r"balance\.groups\.a is empty.*objects"),
        ({"groups": {"ocr": ["ocr"]}}, r"balance\.groups\.ocr: a reward has this name"),
        ({"groups": {"a": ["ocr", "objects"]}, "floor": 0.6}, r"balance\.floor=0\.6: 2 entries.*0\.5"),
        ({"priorities": {"orc": 2.0}}, r"balance\.priorities.*'orc'.*did you mean 'ocr'"),
        (
            {"groups": {"general": ["ocr"]}, "priorities": {"genral": 2.0}},
            r"did you mean 'general'.*clipscore, general, objects",
        ),
        (
            {"groups": {"a": ["ocr"]}, "priorities": {"ocr": 2.0}},
            r"priorities\.ocr: ocr enters.*balance\.priorities\.a",
        ),
        ({"name": "torchjd:UPGraf"}, r"did you mean 'UPGrad'"),
        ({"name": "torchjd:Krum"}, r"balance\.options.*n_byzantine"),
        ({"name": "torchjd:UPGrad", "options": {"d": 1}}, r"balance\.options.*'d'"),
    ],
)
def test_wrong_requests_say_what_was_expected(changes: dict[str, Any], message: str) -> None:
    if str(changes.get("name", "")).startswith("torchjd"):
        pytest.importorskip("torchjd")
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        build(config(**changes), REWARDS, (1.0,) * 3)


def test_the_floor_counts_groups_once() -> None:
    balance = build(config(floor=0.5, groups={"a": ["ocr", "objects"]}), REWARDS, (1.0,) * 3)
    assert isinstance(balance, LeastNorm)
    assert balance.floor == 0.5


def test_a_floor_that_leaves_no_choice_is_allowed() -> None:
    for rewards in (1, 2, 3, 5, 7, 10):
        balance = build(config(floor=1 / rewards), [f"r{k}" for k in range(rewards)], [1.0] * rewards)
        assert isinstance(balance, LeastNorm)


@pytest.mark.parametrize("name", ["UPGrad", "DualProj", "MGDA", "AlignedMTL", "IMTLG"])
def test_torchjd_balances_act_on_the_active_rewards(name: str) -> None:
    pytest.importorskip("torchjd")
    balance = build(config(f"torchjd:{name}"), REWARDS, (1.0,) * 3)
    spoilt = torch.cat([GRADIENTS, torch.zeros(1, 20, dtype=torch.float64)])
    solution = balance(gram(spoilt))
    assert solution.weights[3] == 0.0
    torch.testing.assert_close(solution.weights[:3], balance(gram(GRADIENTS)).weights)
    assert solution.solver == f"torchjd:{name}"
    assert balance(gram(torch.zeros(3, 4))).weights.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("FairGrad", {"alpha": 1.0}),
        ("PCGrad", {}),
        ("Krum", {"n_byzantine": 0, "n_selected": 1}),
    ],
)
def test_torchjd_balances_take_options_and_draw_alike(name: str, options: dict[str, Any]) -> None:
    pytest.importorskip("torchjd")
    balance = build(config(f"torchjd:{name}", options=options), REWARDS, (1.0,) * 3)
    first, state = balance(gram(GRADIENTS)).weights, torch.get_rng_state()
    torch.rand(7)
    assert torch.equal(balance(gram(GRADIENTS)).weights, first)
    torch.set_rng_state(state)


def test_torchjds_upgrad_is_in_no_rewards_way() -> None:
    pytest.importorskip("torchjd")
    balance = build(config("torchjd:UPGrad"), REWARDS, (1.0,) * 3)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        matrix = gram(torch.randn(3, 20, dtype=torch.float64, generator=generator))
        assert cosines(matrix, balance(matrix).weights).min() > -1e-3


def test_a_failure_of_torchjd_is_the_balances() -> None:
    """Krum wants as many gradients as it was built for; a reward that is silent takes one away."""
    pytest.importorskip("torchjd")
    rows = torch.randn(4, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    balance = build(config("torchjd:Krum", options={"n_byzantine": 1}), list("abcd"), (1.0,) * 4)
    assert isinstance(balance, Balance)
    assert balance(gram(rows)).weights.sum().item() == pytest.approx(1.0)
    rows[0] = 0.0
    with pytest.raises(BalanceError, match="torchjd:Krum failed"):
        balance(gram(rows))


def test_a_missing_torchjd_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *rest: Any) -> Any:
        if name.startswith("torchjd"):
            raise ImportError(name)
        return real(name, *rest)

    real = builtins.__import__
    for module in [m for m in sys.modules if m.split(".")[0] == "torchjd"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match="pip install torchjd"):
        build(config("torchjd:UPGrad"), REWARDS, (1.0,) * 3)


def test_weights_that_are_not_finite_are_refused() -> None:
    from marble_cli.balance.external import Torchjd

    with pytest.raises(BalanceError, match="not finite"):
        Torchjd("X", lambda matrix: matrix.diagonal() / 0.0)(torch.eye(2))


def second_only(options: schema.BalanceConfig, rewards: Any, weights: Any) -> LeastNorm:
    return LeastNorm(floor=options.floor)


def test_a_plugin_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("theirs", f"{__name__}:second_only", "marble.balances")
    monkeypatch.setattr(registry, "balances", lambda: {"theirs": entry})
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    assert "theirs" in names()
    assert build(config("theirs", floor=0.1), REWARDS, (1.0,) * 3) == LeastNorm(floor=0.1)
