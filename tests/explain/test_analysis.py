"""The numbers, sentences, tables and pictures of `marble explain`, on metrics with known answers."""

import io
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from marble_cli.explain.analysis import Explanation, cosines, explain, scatter
from marble_cli.explain.diagnosis import diagnose
from marble_cli.explain.figures import draw
from marble_cli.explain.tables import page
from marble_cli.metrics.history import History, series
from marble_cli.wording import count, listed

NAMES = ("clipscore", "ocr", "objects")


def refresh(step: int, **figures: Any) -> dict[str, Any]:
    """A refresh step of three rewards; `figures` may replace any, None drops it."""
    row: dict[str, Any] = {
        "step": step,
        "phase": "train",
        "balance/refresh": 1,
        "balance/gap": 1e-16 * step,
        "balance/fallbacks": 0,
        "balance/solve_seconds": 0.002,
    }
    for k, name in enumerate(NAMES):
        row |= {
            f"reward/{name}/applicable": 24,
            f"advantage/{name}/effective_samples": 12.0 - k,
            f"balance/alpha/{name}": (0.5, 0.3, 0.2)[k],
            f"balance/alpha_cached/{name}": (0.4, 0.3, 0.3)[k],
            f"balance/weight/{name}": 1.0 + k,
            f"balance/grad_norm/{name}": 2.0 - 0.5 * k,
            f"balance/cosine/{name}": 0.1 + 0.1 * k,
        }
    row |= {f"balance/pairwise_cosine/{a}/{b}": 0.2 for a, b in combinations(NAMES, 2)}
    row |= {f"balance/cached_cosine/{name}": 0.3 - 0.2 * k for k, name in enumerate(NAMES)}
    row |= {"balance/conflict_share": 0.0, "balance/staleness_cosine": 0.98}
    row |= {key.replace("__", "/"): value for key, value in figures.items()}
    return {key: value for key, value in row.items() if value is not None}


def amortised(step: int) -> dict[str, Any]:
    shares = {f"balance/alpha/{name}": share for name, share in zip(NAMES, (0.4, 0.3, 0.3), strict=True)}
    return {"step": step, "phase": "train", "balance/refresh": 0, "reward/ocr/applicable": 24, **shares}


def evaluation(step: int, *means: float) -> dict[str, Any]:
    figures = {f"reward/{name}/mean": mean for name, mean in zip(NAMES, means, strict=True)}
    return {"step": step, "phase": "eval", **figures}


def history(*rows: dict[str, Any]) -> History:
    return History([r for r in rows if r["phase"] == "train"], [r for r in rows if r["phase"] == "eval"])


def text(found: Explanation) -> str:
    out = io.StringIO()
    console = Console(file=out, width=80)
    for part in page(found, "runs/a-run", None, diagnose(found)):
        console.print(part)
    return out.getvalue()


def test_a_reward_s_figures() -> None:
    pushed = refresh(3, balance__cosine__ocr=-0.2)
    evaluations = evaluation(0, 0.1, 0.2, 0.3), evaluation(3, 0.4, 0.1, 0.3)
    found = explain(history(*evaluations, refresh(1), amortised(2), pushed))
    assert (found.steps, found.refreshes, found.fallbacks, found.largest_gap) == (3, 2, 0, 3e-16)
    assert found.solve_seconds == 0.002
    clipscore, ocr, objects = found.rewards
    assert clipscore.alpha == pytest.approx((0.5 + 0.4 + 0.5) / 3)
    assert (clipscore.alpha_cached, clipscore.alpha_lowest, clipscore.at_lowest) == (0.4, 0.5, 1.0)
    assert (clipscore.weight, clipscore.grad_norm, objects.grad_norm) == (1.0, 2.0, 1.0)
    assert (objects.effective_samples, objects.applicable) == (10.0, 24)
    assert (ocr.start, ocr.end) == (0.2, 0.1)
    assert ocr.cosine is not None
    assert (ocr.cosine.mean, ocr.cosine.lowest, ocr.cosine.negative) == (pytest.approx(0.0), -0.2, 0.5)


def test_a_reward_has_no_share_of_steps_whose_balance_left_it_out() -> None:
    apart = refresh(2, balance__alpha__clipscore=1.0, balance__alpha__ocr=None, balance__alpha__objects=None)
    unbalanced = {"step": 3, "phase": "train", "balance/refresh": 0, "reward/ocr/applicable": 24}
    shares = [reward.alpha for reward in explain(history(refresh(1), apart, unbalanced)).rewards]
    assert shares == pytest.approx([0.75, 0.15, 0.1])


def test_steps_that_push_some_reward_down_count_once() -> None:
    both_down = refresh(1, balance__cosine__ocr=-0.3, balance__cosine__objects=-0.1)
    found = explain(history(both_down, refresh(2), amortised(3), refresh(4), refresh(5)))
    assert found.pushed_down is not None
    assert (found.pushed_down.count, found.pushed_down.negative, found.pushed_down.lowest) == (4, 0.25, -0.3)
    assert found.cached_pushed_down is not None
    assert (found.cached_pushed_down.negative, found.cached_pushed_down.lowest) == (1.0, pytest.approx(-0.1))
    assert "cached weights would have    100 % of 4 refreshes, lowest cosine -0.10" in text(found)
    said = diagnose(found)[0]
    assert said.startswith("Some reward was pushed down in 25 % of the 4 steps that measured it")
    assert "lowest cosine -0.30, ocr" in said
    assert said.endswith("1 step did not measure it.")


def test_guards_have_a_table_and_a_sentence() -> None:
    """One of three rewards is a guard, which acted in one of two refreshes and was violated in another."""
    rows = [
        refresh(step, balance__alpha__ocr=None, balance__alpha_cached__ocr=None)
        | {f"balance/guard/ocr/{key}": value for key, value in figures.items()}
        for step, figures in (
            (1, {"acted": 1.0, "multiplier": 0.25, "violation": 0.0, "cosine_before": -0.3}),
            (2, {"acted": 0.0, "multiplier": 0.0, "violation": 0.125, "cosine_before": 0.1}),
        )
    ]
    found = explain(history(*rows))
    assert history(*rows).guards == ("ocr",)
    assert [reward.guard is None for reward in found.rewards] == [True, False, True]
    assert (
        "Guards bent the direction: ocr in 50 % of 2 refreshes (median multiplier 0.25)" in diagnose(found)[1]
    )
    assert "ocr by up to 0.12" in diagnose(found)[1]
    row = next(line for line in text(found).split("Guards ")[1].splitlines() if line.startswith("ocr"))
    assert row.split() == ["ocr", "50", "%", "2", "0.25", "-0.10", "50", "%", "0.12"]


def test_pairs_in_either_order_of_their_names() -> None:
    turned = {"balance/pairwise_cosine/ocr/clipscore": -0.5, "balance/pairwise_cosine/clipscore/ocr": None}
    rows = [refresh(step, **turned, balance__conflict_share=1 / 3) for step in (1, 2)]
    found = explain(history(*rows))
    assert {(p.first, p.second): p.cosine.mean for p in found.pairs} == {
        ("clipscore", "ocr"): -0.5,
        ("clipscore", "objects"): 0.2,
        ("ocr", "objects"): 0.2,
    }
    assert found.conflict_share == pytest.approx(1 / 3)


def test_a_conflict_needs_more_than_chance() -> None:
    def said(values: list[float]) -> str:
        rows = [refresh(s, balance__pairwise_cosine__ocr__objects=v) for s, v in enumerate(values, 1)]
        return diagnose(explain(history(*rows)))[1]

    assert said([-0.3, -0.2, -0.4, -0.3, 0.01]).startswith(
        "ocr and objects conflict: the cosine of their gradients is below 0 in 80 % of 5 refreshes "
        "(mean -0.24 ±"
    )
    assert said([-0.3, 0.2, -0.4, 0.3, 0.01, -0.1]).startswith("No two rewards are opposed beyond chance")
    assert said([-0.3, -0.2]).startswith("No two rewards are opposed beyond chance")
    assert said([-0.3, -0.3]).startswith("ocr and objects conflict")
    assert said([-1.0]).startswith(
        "One refresh does not tell which rewards are opposed; the lowest cosine is"
    )


@pytest.mark.parametrize(
    ("shares", "advice"),
    [
        ([0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55], "the fresh shares do drift"),
        ([0.1, 0.5, 0.1, 0.5, 0.1, 0.5, 0.1, 0.5, 0.1, 0.5], "show no drift beyond their scatter"),
        ([0.1, 0.5], "would follow faster."),
    ],
)
def test_a_stale_cache_and_whether_following_helps(shares: list[float], advice: str) -> None:
    rows = [
        refresh(step, balance__staleness_cosine=0.62, balance__alpha__ocr=share)
        for step, share in enumerate(shares, 1)
    ]
    assert not [s for s in diagnose(explain(history(*rows))) if "stale" in s]  # no step works with the cache
    found = explain(history(*rows, amortised(len(rows) + 1)))
    assert found.staleness is not None
    assert found.staleness.lowest == 0.62
    said = next(sentence for sentence in diagnose(found) if sentence.startswith("The cache goes stale"))
    assert "mean cosine 0.62" in said
    assert advice in said


def test_scatter_is_one_for_white_noise_and_nothing_for_constants() -> None:
    import random

    draw_one = random.Random(0)
    noise = [[draw_one.gauss(0, 1) for _ in range(4000)] for _ in range(3)]
    assert scatter(noise) == pytest.approx(1.0, abs=0.05)
    assert scatter([[0.2] * 20]) is None


def test_few_samples_a_long_gradient_and_a_fall_are_named() -> None:
    rows = [refresh(1, advantage__objects__effective_samples=3.0, balance__grad_norm__ocr=20.0)]
    said = diagnose(explain(history(evaluation(0, 1, 1, 1), *rows, evaluation(1, 2, 2, 0.5))))
    assert "objects rests on few images: a median of 3.0 effective samples per step of 24" in " ".join(said)
    flat = diagnose(explain(history(refresh(1, advantage__objects__effective_samples=0.0))))
    assert "objects gave no signal in half of the steps or more: its scores were equal" in " ".join(flat)
    assert "ocr has by far the longest gradient: median norm 20, 10.0 times that of clipscore" in " ".join(
        said
    )
    assert "held-out prompts objects ended below the start" in said[-1]


def test_a_balance_that_does_well_is_told_so_and_no_more() -> None:
    said = diagnose(explain(history(*(refresh(step) for step in range(1, 5)))))
    assert (
        said[0]
        == "No reward was pushed down in the 4 steps that measured it (lowest cosine +0.10, clipscore)."
    )
    assert len(said) == 2


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    bare = history(
        *({"step": s, "phase": "train", "reward/ocr/mean": 0.1, "reward/objects/mean": 0.1} for s in (1, 2))
    )
    found = explain(bare)
    assert found.pushed_down is None
    assert found.rewards[0].alpha is None
    shown = text(found)
    assert "Not recorded by this run: shares (alpha), gradient norms" in shown
    assert "is not known" in shown
    drawn, left_out = draw(bare, found, tmp_path)
    assert drawn == []
    assert [reason.split(",")[0] for reason in left_out] == [
        "conflict.png",
        "shares.png",
        "cosines.png",
        "pareto.png",
    ]


def test_json_holds_no_nan_and_skips_what_is_not_finite() -> None:
    found = explain(history(refresh(1, balance__cosine__ocr=float("nan"), balance__gap=float("inf"))))
    tree = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert tree["rewards"]["ocr"]["cosine"] is None
    assert tree["largest_gap"] is None
    assert tree["pairs"][0] == {
        "first": "clipscore",
        "second": "ocr",
        "cosine": {"count": 1, "mean": 0.2, "lowest": 0.2, "negative": 0.0, "error": None},
    }


def test_tables_fit_80_columns_and_carry_no_colour_codes() -> None:
    rows = [
        refresh(step, balance__cosine__ocr=-0.1, balance__grad_norm__ocr=1.2e-5) for step in range(1, 1001)
    ]
    shown = text(explain(history(evaluation(0, -1234.5, 0.2, 3e6), *rows, evaluation(9, -1200, 0.1, 4e6))))
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert "\x1b" not in shown
    assert "…" not in shown
    assert "100 % of 1000 measured steps, lowest cosine -0.10" in shown


def test_one_reward(tmp_path: Path) -> None:
    rows = [
        {
            "step": s,
            "phase": "train",
            "balance/refresh": 1,
            "balance/alpha/ocr": 1.0,
            "balance/gap": 0.0,
            "balance/cosine/ocr": 1.0,
        }
        for s in range(1, 7)
    ]
    found = explain(history(*rows))
    assert diagnose(found) == (
        "No reward was pushed down in the 6 steps that measured it (lowest cosine +1.00, ocr).",
    )
    assert "pairwise" not in text(found)
    drawn, _ = draw(history(*rows), found, tmp_path)
    assert [path.name for path in drawn] == ["shares.png", "cosines.png"]


def test_all_pictures_are_drawn_and_old_ones_removed(tmp_path: Path) -> None:
    full = history(evaluation(0, 1, 2, 3), refresh(1), amortised(2), refresh(3), evaluation(3, 2, 1, 3))
    drawn, left_out = draw(full, explain(full), tmp_path)
    assert [path.name for path in drawn] == ["conflict.png", "shares.png", "cosines.png", "pareto.png"]
    assert left_out == []
    for path in drawn:
        with Image.open(path) as picture:
            assert min(picture.size) > 300
    without = history(refresh(1))
    draw(without, explain(without), tmp_path)
    assert not (tmp_path / "pareto.png").exists()


def test_more_pairs_than_panels_keep_the_most_opposed() -> None:
    from marble_cli.explain.analysis import Pair
    from marble_cli.explain.pareto import PANELS, chosen_pairs

    names = [f"reward_{k}" for k in range(7)]
    pairs = [
        Pair(a, b, found) for k, (a, b) in enumerate(combinations(names, 2)) if (found := cosines([-k / 30]))
    ]
    order = list(combinations(names, 2))
    assert chosen_pairs(names, pairs) == (order[-PANELS:], "the 15 most opposed of 21 pairs")
    assert chosen_pairs(names, []) == (order[:PANELS], "the first 15 of 21 pairs")
    assert chosen_pairs(names[:6], []) == (list(combinations(names[:6], 2)), None)


def test_cached_shares_are_of_the_cache_and_fresh_ones_of_the_qp() -> None:
    run = history(refresh(1, balance__alpha__ocr=0.6), amortised(2), refresh(3))
    assert run.fresh_shares("ocr") == ([1, 3], [0.6, 0.3])
    assert run.cached_shares("clipscore") == ([1, 2, 3], [0.4, 0.4, 0.4])
    assert series(run.train, "nothing") == ([], [])


def test_words() -> None:
    assert [listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    assert [count(1, "step"), count(2, "refresh")] == ["1 step", "2 refreshes"]
