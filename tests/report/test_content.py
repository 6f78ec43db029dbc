"""What the page says of a run, and of several."""

import json
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import norm

from marble_cli.paths import labels
from marble_cli.report import balance, curves, faults, gallery, outcome, settings, speed
from marble_cli.report.elements import some
from marble_cli.report.reading import read_run, read_runs
from tests.report.conftest import EVIL, Maker, evaluation, keep_pictures, training
from tests.report.page import Page

VERDICTS = {"colorfulness": "▲ rose", "compressibility": "● undecided", "seen": "▼ fell"}


def test_verdicts_follow_the_intervals(page: Page) -> None:
    for name, verdict in VERDICTS.items():
        assert page.row(name, verdict)
    assert page.row("colorfulness", "▲ rose")[2:] == ["+2 (+1.5 … +2.5)", "5", "7", "trained"]
    assert page.row("seen", "▼ fell")[-1] == "watched"
    assert "first: 25 % of the held-out images improved jointly" in page.words
    assert "50 % declined in all of them" in page.words


def test_the_table_of_marble_eval_is_shown(page: Page) -> None:
    assert "first: marble eval of first/step-00000002 against base, 40 held-out prompts" in page.words
    assert page.row("colorfulness", "▲ rose", "+1.5 (+1 … +2)") == [
        "colorfulness", "▲ rose", "+1.5 (+1 … +2)", "–", "5", "6.5", "40",
    ]  # fmt: skip


def test_a_verdict_of_marble_eval_is_kept_and_every_comparison_has_a_table(run: Path) -> None:
    row = {
        "n": 4,
        "mean": 1.0,
        "difference": 1.0,
        "interval": [0.5, 1.5],
        "verdict": "undecided",
        "win_rate": 0.5,
    }
    parts = [{"against": name, "rewards": {"ocr": row}} for name in ("base", "other")]
    tables = outcome.evaluation_tables(read_run(run, "a"), {"rewards": {}, "comparisons": parts})
    assert [table.caption.split(" against ")[1].split(",")[0] for table in tables] == ["base", "other"]
    assert list(tables[0].rows[0][:4]) == ["ocr", "● undecided", "+1 (+0.5 … +1.5)", "50 %"]


def test_faults_are_counted(page: Page) -> None:
    facts = {
        "finished steps": "2 of 2",
        "ended by": "its last step",
        "resumed after step": "1",
        "repeated calls of rewards": "compressibility 1",
        "images masked because scoring failed": "compressibility 3",
        "steps skipped (gradient not finite)": "2",
        "warnings and errors in the log": "2",
    }
    for fact, said in facts.items():
        assert page.row(fact) == [fact, said]


def test_curves_hold_the_metrics_and_bands_the_changes_interval(run: Path) -> None:
    group = curves.held_out_curves(read_runs([run]))
    assert [chart.title for chart in group.charts] == ["colorfulness", "compressibility", "seen"]
    rows = group.charts[0].spec["datasets"]["rows"]
    assert rows == [
        {"run": "first", "step": 0, "value": 5.0, "low": 5.0, "high": 5.0},
        {"run": "first", "step": 2, "value": 7.0, "low": 6.5, "high": 7.5},
    ]
    seen = group.charts[2].spec  # of the same layers as the first
    assert [row["value"] for row in seen["datasets"]["rows"]] == [5.0, 3.0]
    assert seen["description"] == "seen. 5 → 3, steps 0 to 2"
    trained = curves.training_curves(read_runs([run])).charts[0].spec["datasets"]["rows"]
    # ± 1.96 * 2 / sqrt(4)
    assert trained[0] == {
        "run": "first",
        "step": 1,
        "value": 5.1,
        "low": 3.14,
        "high": 7.06,
    }


def test_balance_and_pareto(run: Path) -> None:
    runs = read_runs([run])
    shares = balance.share_curves(runs).charts[0].spec["datasets"]["rows"]
    assert [(row["step"], row["value"]) for row in shares] == [(1, 0.5), (2, 0.5)]
    matrix, strips = balance.conflicts(runs).charts
    (cell,) = matrix.spec["datasets"]["rows"]
    assert cell == {"first": "colorfulness", "second": "compressibility", "value": -0.5, "below": 1.0}
    assert [row["step"] for row in strips.spec["datasets"]["rows"]] == [1, 2]
    (moves,) = curves.pareto_moves(runs).charts
    path = [(row["x"], row["y"], row["start"]) for row in moves.spec["datasets"]["rows"]]
    assert path == [(5.0, 5.0, True), (7.0, 5.0, False)]
    assert moves.summary == "moves that improved: 0 both, 1 one, 0 none"


@pytest.mark.parametrize(("guard", "counted"), [(False, "trained reward"), (True, "trained reward or guard")])
def test_joint_improvement_says_which_rewards_it_counts(make_run: Maker, guard: bool, counted: str) -> None:
    row = training(1) | ({"balance/guard/compressibility/multiplier": 0.5} if guard else {})
    run = make_run("first", [evaluation(0), row, evaluation(1)])
    (said,) = outcome.joint_sentences(read_runs([run]))
    assert f"25 % of the held-out images improved jointly (one {counted} rose and none fell)" in said


def test_a_guard_of_one_run_hides_no_share_of_another(make_run: Maker) -> None:
    guarded = training(1) | {"balance/guard/compressibility/multiplier": 0.5}
    del guarded["balance/alpha/compressibility"]
    runs = [make_run("plain", [training(1)]), make_run("guarded", [guarded])]
    charts = balance.share_curves(read_runs(runs)).charts
    drawn = [(chart.title, {row["run"] for row in chart.spec["datasets"]["rows"]}) for chart in charts]
    assert drawn == [("colorfulness", {"plain", "guarded"}), ("compressibility", {"plain"})]
    references = ['"at":' in json.dumps(chart.spec) for chart in charts]
    assert references == [False, False], "no share is the equal one in both"
    (alone,) = {'"at":' in json.dumps(c.spec) for c in balance.share_curves(read_runs(runs[:1])).charts}
    assert alone


@pytest.mark.parametrize(("most", "kept"), [(1, [0]), (2, [0, 4]), (3, [0, 2, 4]), (9, [0, 1, 2, 3, 4])])
def test_some_items_are_spread(most: int, kept: list[int]) -> None:
    assert some(range(5), most) == kept


def test_shares_above_one_stay_within_the_axis(make_run: Maker) -> None:
    row = training(1)
    row.update({key: 1.8 for key in row if key.startswith("balance/alpha")})
    run = make_run("one", [row])
    (chart, *_) = balance.share_curves(read_runs([run])).charts
    assert '"domain": [0, 1.8]' in json.dumps(chart.spec)


@pytest.mark.parametrize(
    ("settings_of", "shown"),
    [
        (("balance=marble", "balance.refresh_every=7"), "marble, mode amortized, refresh_every 7"),
        (("balance=marble", "balance.mode=full", "balance.floor=0.1"), "marble, mode full, floor 0.1"),
        (("balance=upgrad", "balance.refresh_when=stale"), "upgrad, mode amortized, refresh_when stale"),
    ],
)
def test_the_headline_of_a_balance_has_what_decides(
    make_run: Maker, settings_of: tuple[str, ...], shown: str
) -> None:
    (run,) = read_runs([make_run("one", [], *settings_of)])
    assert ["balance", shown] in [list(row) for row in settings.overview([run]).rows]


def test_a_run_that_was_prolonged_has_its_own_number_of_steps(make_run: Maker) -> None:
    (run,) = read_runs([make_run("one", [training(1), training(2)], "trainer.steps=1")])
    assert ["steps", "2"] in [list(row) for row in settings.overview([run]).rows]


def test_the_split_of_a_step(run: Path) -> None:
    group = speed.speed(read_runs([run]))
    assert group.charts[0].summary == "rollout 38 %, reward 12 %, train 50 %"
    assert list(group.tables[0].rows[0]) == ["first", "2", "8", "0.75", "0.00"]


def test_pictures_are_paired_with_their_scores(run: Path) -> None:
    (one, other), notes = gallery.pairs(read_runs([run]))
    assert notes == []
    assert (one.prompt, one.steps, one.source) == (f"prompt 0 {EVIL}", (0, 2), "general")
    assert one.before != one.after
    assert json.loads(one.changes) == {"colorfulness": 4.0, "seen": -1.0}
    assert (one.gain, one.loss) == (2.0, -0.5)  # the deviation at the start is 2
    assert (other.gain, other.loss) == (-0.5, -0.5)
    assert one.scores[0] == ("colorfulness", "1", "5", "+4", "rose")


def test_several_runs_share_axes_and_differ_in_colour(make_run: Maker) -> None:
    rows = [evaluation(0), training(1), training(2), evaluation(2)]
    folders = [make_run("one", rows), make_run("two", rows, "balance=weighted_sum", "optimizer.lr=0.5")]
    for folder in folders:
        keep_pictures(folder, 0, [{"seen": 1.0}], first=True)
        keep_pictures(folder, 2, [{"seen": 2.0}], first=False)
    runs = read_runs(folders)
    chart = curves.held_out_curves(runs).charts[0]
    assert {row["run"] for row in chart.spec["datasets"]["rows"]} == {"one", "two"}
    colors = [layer["encoding"]["color"] for layer in chart.spec["layer"]]
    assert all(
        color["scale"] == {"domain": ["one", "two"], "range": ["var(--run-0)", "var(--run-1)"]}
        for color in colors
    )
    differing = {row[0]: list(row[1:]) for row in settings.differences(runs).rows}
    assert differing["optimizer.lr"][1] == "0.5"
    assert differing["balance.name"] == ["marble", "weighted_sum"]
    assert "run.dir" not in differing
    assert [pair.run for pair in gallery.pairs(runs)[0]] == ["one", "two"]


def test_a_reward_that_only_one_run_has_is_no_list_of_settings(make_run: Maker) -> None:
    rows = [training(1)]
    runs = read_runs([make_run("one", rows), make_run("two", rows, "~rewards.compressibility")])
    assert settings.differences(runs).rows == []
    assert list(settings.overview(runs).rows[0][1:]) == [
        "colorfulness, compressibility",
        "colorfulness",
    ]


def test_labels_tell_runs_apart(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    assert labels(paths) == ["a/run", "b/run"]
    assert labels([*paths, tmp_path / "other"]) == ["a/run", "b/run", f"{tmp_path.name}/other"]
    assert labels(paths[:1]) == ["run"]
    assert labels([paths[0], paths[0], paths[1]]) == ["a/run", "a/run", "b/run"]


def test_the_last_error_of_the_last_start_is_how_the_run_failed(make_run: Maker) -> None:
    log = "2026-01-02 03:04:05,678 INFO marble 0.1.0, after step 0\n"
    log += "2026-01-02 03:04:06,678 ERROR OSError: full\n"
    table = faults.fault_table(read_runs([make_run("failed", [training(1)], log=log)]))
    facts: dict[str, Any] = {row[0]: row[1] for row in table.rows}
    assert facts["ended by"] == "OSError: full"
    assert facts["finished steps"] == "1 of 2"


def test_a_run_that_was_lengthened_on_a_resume_has_the_length_of_its_last_start(make_run: Maker) -> None:
    """config.yaml has two steps, as the run began."""
    log = "".join(
        f"2026-01-02 03:04:05,678 INFO marble 0.1.0, after step {step}\n" for step in ("0 of 2", "2 of 9")
    )
    run = make_run("longer", [training(1), training(2), training(3)], log=log)
    facts: dict[str, Any] = {row[0]: row[1] for row in faults.fault_table(read_runs([run])).rows}
    assert facts["finished steps"] == "3 of 9"
    assert facts["ended by"] == "a stop, or it is still running"


def test_a_reward_without_a_score_at_the_end_has_no_end(make_run: Maker) -> None:
    last = {key: value for key, value in evaluation(2).items() if not key.startswith("reward/colorfulness/")}
    (run,) = read_runs([make_run("lacking", [evaluation(0), training(1), evaluation(1), training(2), last])])
    row = next(row for row in outcome.outcome_table([run]).rows if row[0] == "colorfulness")
    assert [row[3], row[5]] == ["– (–)", "–"]
    assert next(one for one in run.found.rewards if one.name == "colorfulness").end is None


@pytest.mark.parametrize("z", [0.3, 1.96, 3.5, -2.7])
def test_the_p_value_of_an_interval_is_that_of_a_normal_distribution(z: float) -> None:
    p = outcome.p_value(outcome.Change(z, z - outcome.NORMAL, z + outcome.NORMAL))
    assert p == pytest.approx(2 * norm.sf(abs(z)), rel=1e-9)


def test_a_change_has_a_verdict_if_its_chance_is_known() -> None:
    """An interval without width, as one prompt has, tells nothing; the recorded p-value counts before it."""
    changes = {
        "one prompt": (1.0, 1.0, 1.0),
        "old": (1.0,),
        "known": (1.0, 0.9, 1.1, 0.4),
        "low": (-1.0, -2.0, 0.1, 0.01),
    }
    said = outcome.verdicts({name: outcome.Change(*change) for name, change in changes.items()})
    assert said == {"one prompt": "–", "old": "–", "known": "undecided", "low": "fell"}


def test_verdicts_are_corrected_for_the_number_of_rewards() -> None:
    # p-values of about 0.03, 0.02 and 0.001: alone, each interval excludes 0.
    changes = {
        name: outcome.Change(z, z - 1.96, z + 1.96) for name, z in (("a", 2.17), ("b", -2.33), ("c", 3.29))
    }
    assert outcome.verdicts({"a": changes["a"]}) == {"a": "rose"}
    assert outcome.verdicts(changes) == {"a": "rose", "b": "fell", "c": "rose"}  # 0.001 x 3, 0.02 x 2, 0.03
    more = changes | {"d": outcome.Change(0.1, -1.86, 2.06)}
    assert outcome.verdicts(more) == {"a": "undecided", "b": "undecided", "c": "rose", "d": "undecided"}
    p_values = [2 * norm.sf(abs(z)) for z, *_ in more.values()]
    reject = [p <= 0.05 for p in holm_by_definition(p_values)]
    assert [said != "undecided" for said in outcome.verdicts(more).values()] == reject


def holm_by_definition(p_values: list[float]) -> list[float]:
    """Return Holm's adjusted p-values by their definition: max over ranks up to one's own of p (m - rank)."""
    order = sorted(p_values)
    return [
        max((len(order) - rank) * p for rank, p in enumerate(order[: order.index(own) + 1]))
        for own in p_values
    ]
